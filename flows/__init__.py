"""What happens, in order. One file a flow; it reads like a paragraph."""
