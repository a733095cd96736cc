def handle(request):
    name = request.query.get("name", "world")
    return {"hello": name, "from": "Python"}
