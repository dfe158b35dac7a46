"Status 0 if the server at an address answers within three seconds, with the password of the environment: healthy.py http://127.0.0.1:8000"
import base64
import os
import sys
from urllib.request import ProxyHandler, Request, build_opener

password = base64.b64encode(b":" + os.environ.get("DEEP_FASHION_PASSWORD", "").strip().encode()).decode()
request = Request(f"{sys.argv[1]}/health", headers={"Authorization": f"Basic {password}"})
# A proxy that the environment names is for other servers.
build_opener(ProxyHandler({})).open(request, timeout=3).close()
