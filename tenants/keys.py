import hashlib, hmac, re, secrets, zlib
from django.conf import settings

A = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
S = re.compile(r"(aip_(?:dev|staging|prod|sandbox)_([0-9A-Za-z]{12})_[0-9A-Za-z]{32})([0-9A-Za-z]{6})")


def _crc(t):
    n = zlib.crc32(t.encode())
    out = ""
    for _ in range(6):
        n, r = divmod(n, 62)
        out = A[r] + out
    return out


def public_id(text):
    m = S.fullmatch(text)
    return m[2] if m and _crc(m[1]) == m[3] else None


def digest(text):
    return hmac.digest(settings.KEY_PEPPER, text.encode(), "sha256")


def issue(*, environment, name="", scopes=("calls", "read"), expires_at=None):
    from tenants.models import ApiKey

    p = "".join(secrets.choice(A) for _ in range(12))
    b = f"aip_{environment.kind}_{p}_" + "".join(secrets.choice(A) for _ in range(32))
    t = b + _crc(b)
    k = ApiKey.objects.create(
        tenant=environment.tenant,
        environment=environment,
        name=name,
        public_id=p,
        prefix=f"aip_{environment.kind}_{p}",
        digest=digest(t),
        scopes=list(scopes),
        expires_at=expires_at,
    )
    return k, t
