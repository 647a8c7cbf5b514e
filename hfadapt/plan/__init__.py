"""Every `auto` answered with a reason, before anything is downloaded."""
