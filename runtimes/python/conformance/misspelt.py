def handle(request):
    return (
