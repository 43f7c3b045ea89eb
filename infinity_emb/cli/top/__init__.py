"""The command `top`: what a running server is doing, from its public routes."""
