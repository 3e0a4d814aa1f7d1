"""Settings: the only module of the running system that reads the environment."""

from ipaddress import ip_network
from pathlib import Path

import environ
from celery.schedules import crontab

from aiplatform.lib import caching

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
# .env holds this checkout's secrets; stack.env exists while a demo runs and says where its servers are, to whoever names
# none: half of it would be one database with another one's owner.
for file in (BASE_DIR / ".env", BASE_DIR / ".data" / "stack.env"):
    if file.is_file() and not (file.name == "stack.env" and "DATABASE_URL" in env.ENVIRON):
        env.read_env(file)

# --- Django -----------------------------------------------------------------------------------------------------------
SECRET_KEY = env("SECRET_KEY")
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "tenants",
    "usage",
    "moderation",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "aiplatform.urls"
ASGI_APPLICATION = "aiplatform.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LANGUAGE_CODE = "en"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Postgres: pooled, because under ASGI each Django request runs on a fresh thread ----------------------------------
# Who connects by DATABASE_URL needs the rights of DATABASE_APP_ROLE only; DATABASE_OWNER_URL is for `manage.py migrate`.
DATABASES = {"default": env.db("DATABASE_URL")}
DATABASE_OWNER_URL = env("DATABASE_OWNER_URL", default="")
DATABASE_OWNER = env.db_url_config(DATABASE_OWNER_URL) if DATABASE_OWNER_URL else {}
DATABASE_APP_ROLE = env("DATABASE_APP_ROLE", default="aiplatform_app")
DATABASES["default"] |= {
    "ENGINE": "django.db.backends.postgresql",
    "CONN_MAX_AGE": 0,
    "OPTIONS": DATABASES["default"].get("OPTIONS", {})  # those of the URL, such as sslmode
    | {
        "pool": {"min_size": 0, "max_size": env.int("DATABASE_POOL_SIZE", default=8), "timeout": 5},
        "connect_timeout": 2,
        "application_name": env("APPLICATION_NAME", default="aiplatform"),
    },
}

# --- Redis (Valkey): doorbells, relay, rate limits; never money -------------------------------------------------------
REDIS_URL = env("REDIS_URL")
CELERY_BROKER_URL = env("CELERY_BROKER_URL", default=REDIS_URL)

LIMITS_REDIS_URL = env("LIMITS_REDIS_URL", default=REDIS_URL)  # of rate limits alone

# --- Answers that are given again: Redis or Memcached, whatever it loses is made again --------------------------------
CACHE_URL = env("CACHE_URL", default=REDIS_URL)
CACHES = {"default": caching.configuration(CACHE_URL)}
CACHE_MAX_BYTES = env.int("CACHE_MAX_BYTES", default=512 * 1024)  # of one answer

# --- People -----------------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "tenants.User"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "usage:overview"
LOGOUT_REDIRECT_URL = "login"

# --- The web's defences; HTTPS=true is for every deployment beyond one's own machine ----------------------------------
HTTPS = env.bool("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("BEHIND_PROXY", default=False) else None
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    },
}

# --- Static files -----------------------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
WHITENOISE_USE_FINDERS = True

# --- REST API ---------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tenants.api.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.CursorPagination",
    "PAGE_SIZE": 50,
    "EXCEPTION_HANDLER": "tenants.api.problem",
    "COERCE_DECIMAL_TO_STRING": True,
}

# --- Keys that we issue: the pepper lives outside the database --------------------------------------------------------
KEY_PEPPER = env("KEY_PEPPER").encode()
KEY_PEPPER_VERSION = env.int("KEY_PEPPER_VERSION", default=1)
PRINCIPAL_CACHE_SECONDS = env.float("PRINCIPAL_CACHE_SECONDS", default=1.0)

# --- Whose word counts on where a request comes from (X-Forwarded-For) ------------------------------------------------
TRUSTED_PROXIES = [ip_network(one.strip(), strict=False) for one in env.list("TRUSTED_PROXIES", default=[])]

# --- Where people reach the pages; empty: where a request was sent ----------------------------------------------------
PUBLIC_URL = env("PUBLIC_URL", default="")

# --- The gateway ------------------------------------------------------------------------------------------------------
MAX_BODY_BYTES = env.int("MAX_BODY_BYTES", default=8 * 1024 * 1024)
MAX_UPLOAD_BYTES = env.int("MAX_UPLOAD_BYTES", default=32 * 1024 * 1024)  # of forms: files, images, audio
MAX_REPLY_BYTES = env.int("MAX_REPLY_BYTES", default=64 * 1024 * 1024)  # of one plain answer
BODY_TIMEOUT_SECONDS = env.float("BODY_TIMEOUT_SECONDS", default=30)
START_WITHIN_SECONDS = env.int("START_WITHIN_SECONDS", default=60)  # a held call that no worker claimed by then is void
BATCH_START_WITHIN_SECONDS = env.int("BATCH_START_WITHIN_SECONDS", default=24 * 3600)  # the same in the batch lane
BATCH_POLL_SECONDS = env.float("BATCH_POLL_SECONDS", default=60)  # how often a running batch is looked at
BATCH_DEADLINE_HOURS = env.int("BATCH_DEADLINE_HOURS", default=48)  # then its money is an unknown outcome
CALL_DEADLINE_SECONDS = env.int("CALL_DEADLINE_SECONDS", default=660)
BACKGROUND_DEADLINE_SECONDS = env.int("BACKGROUND_DEADLINE_SECONDS", default=3600)  # of calls in the background
BACKGROUND_POLL_SECONDS = env.float("BACKGROUND_POLL_SECONDS", default=2)
UNKNOWN_GRACE_SECONDS = env.int("UNKNOWN_GRACE_SECONDS", default=900)
LEASE_RENEW_SECONDS = env.float("LEASE_RENEW_SECONDS", default=3)
LEASE_LOST_SECONDS = env.float("LEASE_LOST_SECONDS", default=15)
CONTENDED_WAIT_SECONDS = env.float("CONTENDED_WAIT_SECONDS", default=2.0)
SWEEP_SECONDS = env.float("SWEEP_SECONDS", default=3)
SEAL_SECONDS = env.float("SEAL_SECONDS", default=60)
AUDIT_SECONDS = env.float("AUDIT_SECONDS", default=300)
RELAY_KEEP_SECONDS = env.int("RELAY_KEEP_SECONDS", default=600)
RELAY_SILENCE_SECONDS = env.float("RELAY_SILENCE_SECONDS", default=5)
WORKER_PLACES = env.int("WORKER_PLACES", default=512)
BATCH_PLACES_SHARE = env.float("BATCH_PLACES_SHARE", default=0.25)  # of the batch lane while others run
SEND_SECONDS = env.float("SEND_SECONDS", default=30)  # longest that a reader may take nothing
DRAIN_STREAM_SECONDS = env.float("DRAIN_STREAM_SECONDS", default=60)  # of a stream whose caller has gone
DRAIN_STREAMS = env.int("DRAIN_STREAMS", default=64)  # of these at once in one worker process
DRAIN_SECONDS = env.float("DRAIN_SECONDS", default=25)
PROVIDER_TRIES = env.int("PROVIDER_TRIES", default=3)
PROVIDER_WAIT_SECONDS = env.float("PROVIDER_WAIT_SECONDS", default=30)
PACE_PROVIDERS = env.bool("PACE_PROVIDERS", default=True)
BREAKER_FAILURES = env.int("BREAKER_FAILURES", default=5)
RETRY_RESERVE = env.float("RETRY_RESERVE", default=10)
PROVIDER_SILENCE_SECONDS = env.float("PROVIDER_SILENCE_SECONDS", default=60)
NOTICE_SECONDS = env.float("NOTICE_SECONDS", default=5)
WEBHOOK_SECONDS = env.float("WEBHOOK_SECONDS", default=1.0)
WEBHOOK_PLACES = env.int("WEBHOOK_PLACES", default=64)
WEBHOOK_TIMEOUT_SECONDS = env.float("WEBHOOK_TIMEOUT_SECONDS", default=10)
WEBHOOK_RETRY_SECONDS = env.float("WEBHOOK_RETRY_SECONDS", default=5)
WEBHOOK_GIVE_UP_SECONDS = env.float("WEBHOOK_GIVE_UP_SECONDS", default=3 * 24 * 3600)
WEBHOOK_KEEP_DAYS = env.int("WEBHOOK_KEEP_DAYS", default=30)
WEBHOOK_ALLOWED_NETWORKS = env.list("WEBHOOK_ALLOWED_NETWORKS", default=[])
WEBHOOK_PORTS = env.list("WEBHOOK_PORTS", default=["443", "8443"])
WEBHOOK_PLAIN_HTTP = env.bool("WEBHOOK_PLAIN_HTTP", default=False)
DATA_DIR = env("DATA_DIR", default="")
FAILPOINT = env("FAILPOINT", default="")
INSTANCE = env.int("INSTANCE", default=1)

# --- What new tenants and development environments may spend, in USD; 0 is no cap -------------------------------------
NEW_TENANT_CAP_USD = env("NEW_TENANT_CAP_USD", default="50")
DEVELOPMENT_CAP_USD = env("DEVELOPMENT_CAP_USD", default="5")

# --- What new environments may do, by kind: requests a minute / tokens a minute / calls at once, each a figure or `none` -
RATE_LIMITS = {
    "dev": env("RATE_LIMIT_DEV", default="60/60000/8"),
    "staging": env("RATE_LIMIT_STAGING", default="600/1000000/64"),
    "sandbox": env("RATE_LIMIT_SANDBOX", default="600/1000000/64"),
    "prod": env("RATE_LIMIT_PROD", default="none"),
}

# --- Mail: notices of caps; without a server it goes into the log -----------------------------------------------------
EMAIL_URL = env("EMAIL_URL", default="")
EMAIL_BACKEND = "aiplatform.lib.mail.LogBackend"
if EMAIL_URL:
    vars().update(env.email_url_config(EMAIL_URL))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env("EMAIL_FROM", default="aiplatform@localhost")
OPERATOR_EMAIL = env("OPERATOR_EMAIL", default="")

# --- What `stack_seed` sets up; secrets stay in the environment, and only workers read them ------------------------
VENDORS = {
    name: {
        "base_url": env(f"{prefix}_BASE_URL", default="") or default_url,
        "key_env": f"{prefix}_API_KEY",
        "has_key": bool(env(f"{prefix}_API_KEY", default="")),
        "is_wanted": bool(env(f"{prefix}_API_KEY", default="") or env(f"{prefix}_BASE_URL", default="")),
    }
    for name, prefix, default_url in (
        ("openai", "OPENAI", "https://api.openai.com/v1"),
        ("anthropic", "ANTHROPIC", "https://api.anthropic.com"),
    )
}
LOCAL_MODEL_URL = env("LOCAL_MODEL_URL", default="")

# --- Celery: the message is a doorbell, so early acknowledgement and no results (docs/reliability.md) -----------------
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_DEFAULT_QUEUE = "calls"
CELERY_TASK_ROUTES = {
    f"aiplatform.gateway.tasks.{task}": {"queue": "maintenance"}
    for task in ("sweep", "look_at_background", "tell_notices", "seal", "audit", "audit_all")
} | {"aiplatform.gateway.tasks.send_webhooks": {"queue": "webhooks"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 0.0
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_POOL_ACQUIRE_TIMEOUT = 2
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 60,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "socket_timeout": 10,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "retry_on_timeout": False,
    "global_keyprefix": "aip:",
}
CELERY_BEAT_SCHEDULE = {
    # An unread sweep is worthless once the next one is due.
    "sweep": {
        "task": "aiplatform.gateway.tasks.sweep",
        "schedule": SWEEP_SECONDS,
        "options": {"expires": SWEEP_SECONDS},
    },
    "background": {
        "task": "aiplatform.gateway.tasks.look_at_background",
        "schedule": BACKGROUND_POLL_SECONDS,
        "options": {"expires": BACKGROUND_POLL_SECONDS},
    },
    "batches": {
        "task": "aiplatform.gateway.tasks.settle_batches",
        "schedule": BATCH_POLL_SECONDS,
        "options": {"expires": BATCH_POLL_SECONDS},
    },
    "notices": {
        "task": "aiplatform.gateway.tasks.tell_notices",
        "schedule": NOTICE_SECONDS,
        "options": {"expires": NOTICE_SECONDS},
    },
    "webhooks": {
        "task": "aiplatform.gateway.tasks.send_webhooks",
        "schedule": WEBHOOK_SECONDS,
        "options": {"expires": WEBHOOK_SECONDS},
    },
    "seal": {
        "task": "aiplatform.gateway.tasks.seal",
        "schedule": SEAL_SECONDS,
        "options": {"expires": SEAL_SECONDS},
    },
    "audit": {
        "task": "aiplatform.gateway.tasks.audit",
        "schedule": AUDIT_SECONDS,
        "options": {"expires": AUDIT_SECONDS},
    },
    "audit_all": {
        "task": "aiplatform.gateway.tasks.audit_all",
        "schedule": crontab(hour=3, minute=17),
        "options": {"expires": 3600},
    },
}

# --- Logs: one JSON line per event, ids only, never a prompt or a key -------------------------------------------------
LOGGING_CONFIG = None
LOG_LEVEL = env("LOG_LEVEL", default="INFO")
