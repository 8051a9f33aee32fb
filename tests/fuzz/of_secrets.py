"""etc/secrets.env. No value may ever be said, whatever is wrong with the file."""

from __future__ import annotations

from collections.abc import Sequence

from fuzz.target import Case, Target, Wrong, expect
from overnight import secrets

_CANARY = "canary-4f1c9a77d0"


class Secrets(Target):
    """The file, and a look for two names in it."""

    name = "secrets file"
    clear = (secrets.SecretError,)
    tokens = (b"NAME=", b"export ", b"'", b'"', b"\r\n", b"\xc2\xa0", b"#", b"=", _CANARY.encode(), b"A" * 9000)

    def seeds(self) -> Sequence[bytes]:
        lines = f"# keys\nAPI_KEY={_CANARY}\n\nOTHER = '{_CANARY} with blanks'\nTHIRD=\"{_CANARY}\"\n"
        return [lines.encode(), f"API_KEY={_CANARY}".encode()]

    def read(self, case: Case) -> str:
        path = self.folder / "secrets.env"
        path.write_bytes(case.data)
        path.chmod(0o600)
        try:
            found = secrets.look_up(["API_KEY", "OTHER"], {"OTHER": "of the environment"}, path)
        except secrets.SecretError as error:
            said = str(error)
            if any(_CANARY[at : at + 8] in said for at in range(len(_CANARY) - 7)):
                raise Wrong("a secret's value is told") from None
            raise
        expect(all("\n" not in value and "\0" not in value for value in found.values()), "no environment takes it")
        secrets.missing(["API_KEY"], set(), "the environment", path)
        return f"{len(found)} found"
