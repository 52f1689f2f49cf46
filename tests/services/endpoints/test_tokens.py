from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from local_endpoints import local_api, local_client

from models.catalog import Model
from models.errors import InvalidConfig
from services.endpoints import tokens as module
from services.endpoints.config import ServeConfig
from services.endpoints.problems import Forbidden, Unauthorized
from services.endpoints.tokens import Tokens, new_token


def _file(path: Path, *lines: module.Token) -> Path:
    path.write_text(json.dumps([line.model_dump(mode="json") for line in lines]))
    return path


def test_tokens_are_random_and_only_their_digests_are_kept(tmp_path: Path) -> None:
    text, line = new_token("reader", ("read",))
    assert len(text) >= 43
    assert text != new_token("reader", ("read",))[0]
    path = _file(tmp_path / "tokens.json", line)
    assert text not in path.read_text()
    known = Tokens(str(path))
    assert known.check(f"Bearer {text}", "read") == "reader"
    assert known.check(f"bearer   {text} ", "read") == "reader"
    with pytest.raises(Forbidden, match="'reader' does not have the scope 'predict'"):
        known.check(f"Bearer {text}", "predict")
    for wrong in (None, "", "Bearer", "Bearer ", f"Basic {text}", f"Bearer {text[:-1]}", text, "Bearer " + "x" * 9999):
        with pytest.raises(Unauthorized):
            known.check(wrong, "read")
    with pytest.raises(Unauthorized):
        known.check("Bearer \udcff\u00e9", "read")
    with pytest.raises(Unauthorized):
        known.check(f"Bearer {line.sha256}", "read")


def test_without_a_file_everyone_may_do_everything() -> None:
    assert Tokens(None).check(None, "write") is None


def test_a_changed_file_takes_effect_and_a_broken_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    (old, old_line), (new, new_line) = new_token("a", ("read",)), new_token("a", ("read",))
    path = _file(tmp_path / "tokens.json", old_line)
    known = Tokens(str(path))
    _file(tmp_path / "next.json", new_line).replace(path)
    assert known.check(f"Bearer {new}", "read") == "a"
    with pytest.raises(Unauthorized):
        known.check(f"Bearer {old}", "read")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "broken.json").replace(path)
    assert known.check(f"Bearer {new}", "read") == "a"
    path.unlink()
    assert known.check(f"Bearer {new}", "read") == "a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSON"),
        ("{}", "array"),
        ('[{"name": "a", "sha256": "00", "scopes": ["read"]}]', "sha256"),
        ('[{"name": "a", "sha256": "' + "0" * 64 + '", "scopes": ["all"]}]', "scopes"),
        ('[{"name": "a", "sha256": "' + "0" * 64 + '", "scopes": []}]', "scopes"),
        ('[{"name": "a", "token": "secret", "scopes": ["read"]}]', "token"),
    ],
)
def test_broken_files_are_refused_at_the_start(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=reason):
        Tokens(str(path))
    with pytest.raises(InvalidConfig, match="cannot be read"):
        Tokens(str(tmp_path / "nothing.json"))


def test_routes_ask_for_their_scope(
    tmp_path: Path, model: Model, volumes: Path, outputs: Path, volume_url: str
) -> None:
    secrets = {}
    lines = []
    for name, scopes in {"reader": ("read",), "user": ("read", "predict"), "writer": module.SCOPES}.items():
        secrets[name], line = new_token(name, scopes)
        lines.append(line)
    path = _file(tmp_path / "tokens.json", *lines)
    config = ServeConfig(
        models=(str(model.folder),), tokens=str(path), volumes=(str(volumes),), outputs=(str(outputs),)
    )
    patch = {"content": np.zeros((4, 4, 4), np.uint8).tobytes()}
    raw = {"Content-Type": "application/octet-stream", "X-Shape": "4,4,4", "X-Dtype": "uint8"}
    body = {"volume": volume_url, "box": "0:4,0:4,0:4"}
    expected = {None: [200, 401, 401, 401, 401], "reader": [200, 200, 403, 403, 403]}
    expected |= {"user": [200, 200, 200, 200, 403], "writer": [200, 200, 200, 200, 201]}

    async def ask(client: httpx.AsyncClient, name: str | None) -> list[httpx.Response]:
        headers = {} if name is None else {"Authorization": f"Bearer {secrets[name]}"}
        return [
            await client.get("/v2/health/ready", headers=headers),
            await client.get("/v2/models/small", headers=headers),
            await client.post("/v1/boundary", headers=headers | raw, **patch),
            await client.post("/v1/segment", headers=headers, json=body),
            await client.post(
                "/v1/segment", headers=headers, json=body | {"output": str(outputs / f"tokens-{name}.zarr")}
            ),
        ]

    async def run() -> None:
        async with local_client(local_api(config)) as client:
            for name, statuses in expected.items():
                replies = await ask(client, name)
                assert [reply.status_code for reply in replies] == statuses, name
                for reply in replies:
                    if reply.status_code == 401:
                        assert reply.headers["www-authenticate"] == "Bearer"
                    if reply.status_code >= 400:
                        assert reply.json()["type"] in ("/problems/unauthorized", "/problems/forbidden")
            schema = (await client.get("/openapi.json")).json()
            assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
            assert schema["paths"]["/v1/boundary"]["post"]["security"]
            assert "security" not in schema["paths"]["/healthz"]["get"]

    asyncio.run(run())
