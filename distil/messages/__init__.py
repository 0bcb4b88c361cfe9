"""How a message is written, and how a reply is read."""
