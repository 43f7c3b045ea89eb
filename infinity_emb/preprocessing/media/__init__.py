"""Fetch, check and decode the images and audio that clients send."""
