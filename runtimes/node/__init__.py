"""Node: functions with a default export on web-standard Request and Response."""
