"""Jobs: requests that are accepted at once, outlive the server's process, and have their answers fetched later."""
