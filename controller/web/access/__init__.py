"""Who sends a request, and what they may do. Off until `sign_in.access_file` is set."""
