"""Support work on this repository; nothing here is installed."""
