"""What an adapter gives away of its training rows."""
