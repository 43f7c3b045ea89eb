"""Turn texts, pairs, images and audio into encoded inputs."""
