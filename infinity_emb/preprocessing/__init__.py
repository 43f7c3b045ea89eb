"""Convert texts, pairs, images and audio to encoded inputs."""
