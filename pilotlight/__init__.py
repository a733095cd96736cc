"""The small base that the services share: settings, problems, ids, calls between services, the stores."""
