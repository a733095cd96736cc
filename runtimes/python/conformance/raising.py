handle = {}["nothing"]
