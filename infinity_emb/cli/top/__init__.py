"""The command `top`: show what a running server is doing, from its public routes."""
