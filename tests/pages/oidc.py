"""A small provider of logins (OIDC) over real HTTP."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

CLIENT = "onenip-pages"


@contextmanager
def provide(email):
    """An OIDC provider, by its address, that logs everybody in under one e-mail address."""
    jose = pytest.importorskip("authlib.jose")
    key = jose.JsonWebKey.generate_key("RSA", 2048, {"kid": "1"}, is_private=True)
    nonces = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            if url.path == "/authorize":
                nonces["code"] = asked.get("nonce")
                back = urlencode({"code": "code", "state": asked["state"]})
                self.send_response(302)
                self.send_header("Location", f"{asked['redirect_uri']}?{back}")
                self.end_headers()
            elif url.path == "/jwks":
                self.give({"keys": [key.as_dict()]})
            else:
                paths = {"authorization": "authorize", "token": "token"}
                ends = {f"{name}_endpoint": f"{address}/{path}" for name, path in paths.items()}
                self.give({"issuer": address, "jwks_uri": f"{address}/jwks", **ends})

        def do_POST(self):
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            now = int(time.time())
            claims = {"iss": address, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 600}
            claims |= {"nonce": nonces[asked["code"][0]], **email}
            token = jose.jwt.encode({"alg": "RS256", "kid": "1"}, claims, key).decode()
            self.give({"access_token": "a", "token_type": "Bearer", "id_token": token})

        def give(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address
        server.shutdown()


SECRETS = """[auth]
redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
cookie_secret = "a long secret of the plant's own"
client_id = "{client}"
client_secret = "another"
server_metadata_url = "{provider}/.well-known/openid-configuration"
"""
