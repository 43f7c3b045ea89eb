"""Admit requests, order items, form batches and run worker threads."""
