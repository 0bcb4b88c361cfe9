"""Traces → files that trainers read: conversations with their pictures, in each trainer's own form."""
