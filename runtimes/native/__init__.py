"""Native: any executable that serves HTTP on $PORT."""
