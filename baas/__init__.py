"""What functions reach outside of their sandbox: the data API, other functions, allowed hosts."""
