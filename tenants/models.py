"""Tenants, their people, environments, issued keys, rate limits, and the providers that the operator has set up."""

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from aiplatform.lib.ids import uuid7
from tenants.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent

__all__ = [
    "ApiKey",
    "ApiKeyQuerySet",
    "CachePurge",
    "EmbeddingUse",
    "Environment",
    "Member",
    "NearMatching",
    "NearScore",
    "Provider",
    "ProviderCredential",
    "RateLimit",
    "Suspendable",
    "Tenant",
    "User",
    "UserManager",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
]


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email__iexact=username)


class User(AbstractBaseUser, PermissionsMixin):
    """A person; what he may do is said by his memberships."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=150, blank=True)
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    date_joined = models.DateTimeField(default=timezone.now)

    objects = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __str__(self) -> str:
        return self.email


class Suspendable(models.Model):
    """What the kill switch stops (`tenants.suspension`); unlike revoking it can be undone."""

    class Hand(models.TextChoices):
        """Who stopped it; what the operator stopped, only he lets go on."""

        OPERATOR = "operator"
        TENANT = "tenant"

    suspended_at = models.DateTimeField(null=True, blank=True)
    suspended_by = models.CharField(max_length=16, choices=Hand, blank=True, default="", db_default="")
    suspended_reason = models.CharField(max_length=200, blank=True, default="", db_default="")

    class Meta:
        abstract = True


class Tenant(Suspendable):
    """A company: the unit of isolation and of billing."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True)
    time_zone = models.CharField(max_length=64, default="UTC", help_text="IANA name; calendar caps turn over in it")
    created_at = models.DateTimeField(default=timezone.now)
    users: "models.ManyToManyField[User, Member]" = models.ManyToManyField(
        User, through="Member", related_name="tenants"
    )

    def __str__(self) -> str:
        return self.name


class Member(models.Model):
    """A person's role in a tenant."""

    class Role(models.TextChoices):
        OWNER = "owner"
        ADMIN = "admin"
        DEVELOPER = "developer"
        FINANCE = "finance"
        VIEWER = "viewer"

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="members")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "user"], name="member_once")]

    def __str__(self) -> str:
        return f"{self.user_id} as {self.role}"


class Environment(Suspendable):
    """A tenant's dev, staging, prod or sandbox: keys, caps, limits and policies belong to one."""

    class Kind(models.TextChoices):
        DEVELOPMENT = "dev"
        STAGING = "staging"
        PRODUCTION = "prod"
        SANDBOX = "sandbox", "sandbox (built-in provider, price 0)"

    class PromptCache(models.TextChoices):
        """docs/prompt-caching.md"""

        OFF = "off", "callers mark for themselves"
        AUTO = "auto", "marked where it pays"

    class OnDisconnect(models.TextChoices):
        """docs/streaming.md"""

        FINISH = "finish", "carried out to the end"
        CANCEL = "cancel", "streams are closed at once"
        DRAIN = "drain", "streams are heard for their usage alone"

    class Cache(models.TextChoices):
        """docs/cache.md"""

        OFF = "off", "nothing is kept, whatever a request asks"
        ON_REQUEST = "on_request", "where a request asks for it by Cache-Control: max-age"
        ON = "on", "for every request that does not refuse it"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="environments")
    name = models.CharField(max_length=40)
    kind = models.CharField(max_length=16, choices=Kind)
    default_max_tokens = models.PositiveIntegerField(
        default=1024, help_text="sent to the provider where a call names no output limit of its own"
    )
    floor_max_tokens = models.PositiveIntegerField(
        default=16, help_text="a cap that affords fewer output tokens than this refuses the call"
    )
    prompt_cache = models.CharField(
        max_length=8,
        choices=PromptCache,
        default=PromptCache.OFF,
        db_default=PromptCache.OFF,
        help_text="whether long beginnings that come back are marked for the provider's cache",
    )
    on_disconnect = models.CharField(
        max_length=8,
        choices=OnDisconnect,
        default=OnDisconnect.FINISH,
        db_default=OnDisconnect.FINISH,
        help_text="what becomes of a call whose caller goes",
    )
    cache = models.CharField(
        max_length=12,
        choices=Cache,
        default=Cache.ON_REQUEST,
        db_default=Cache.ON_REQUEST,
        help_text="whether answers are kept and given again",
    )
    cache_ttl_seconds = models.PositiveIntegerField(
        default=300,
        db_default=300,
        validators=[MinValueValidator(1)],
        help_text="how old an answer may be that is given again; a request may ask for less",
    )
    cache_normalises = models.BooleanField(
        default=False, db_default=False, help_text="what differs in white space and case alone is the same question"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="environment_name_once")]

    def __str__(self) -> str:
        return self.name


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def usable(self) -> "ApiKeyQuerySet":
        """Neither revoked nor expired."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()), revoked_at=None)


class ApiKey(Suspendable):
    """An issued key; of its secret only a keyed hash is stored (see `tenants.keys`)."""

    class Scope(models.TextChoices):
        CALLS = "calls", "make AI calls"
        READ = "read", "read usage and receipts by the REST API"
        ADMIN = "admin", "change the tenant by the REST API"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="api_keys")
    environment = models.ForeignKey(Environment, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100, blank=True)
    public_id = models.CharField(max_length=12, unique=True)
    prefix = models.CharField(max_length=40, help_text="the part that may be shown")
    digest = models.BinaryField(max_length=32)
    pepper_version = models.PositiveSmallIntegerField(default=1)
    scopes = ArrayField(models.CharField(max_length=16, choices=Scope), default=list)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    allowed_models = ArrayField(
        models.CharField(max_length=200),
        default=list,
        blank=True,
        db_default=[],
        help_text="names that it may ask for, `gpt-5*` for all that begin so; empty: every one",
    )
    allowed_endpoints = ArrayField(
        models.CharField(max_length=60), default=list, blank=True, db_default=[], help_text="empty: every one"
    )
    allowed_origins = ArrayField(
        models.CharField(max_length=300),
        default=list,
        blank=True,
        db_default=[],
        help_text="pages of browsers that may use it, and then nobody else may; empty: no page may",
    )
    allowed_networks = ArrayField(
        models.CharField(max_length=50),
        default=list,
        blank=True,
        db_default=[],
        help_text="addresses in CIDR form that may use it; empty: every one",
    )

    objects = ApiKeyQuerySet.as_manager()

    def __str__(self) -> str:
        return self.prefix


class RateLimit(models.Model):
    """Requests and tokens per minute and concurrent calls, on a tenant, one environment, one key or each end user of these."""

    class Mode(models.TextChoices):
        ENFORCE = "enforce"
        SHADOW = "shadow", "counts what it would have refused"

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="rate_limits")
    environment = models.ForeignKey(Environment, models.CASCADE, null=True, blank=True, related_name="rate_limits")
    api_key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="rate_limits")
    end_user = models.CharField(
        max_length=256,
        blank=True,
        default="",
        db_default="",
        help_text="empty: all together; *: each end user by himself; else this one",
    )
    mode = models.CharField(max_length=8, choices=Mode, default=Mode.ENFORCE, db_default=Mode.ENFORCE)
    rpm = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    tpm = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    concurrency = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    rpm_burst = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="requests at once; empty: a minute's worth"
    )
    tpm_burst = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="tokens at once; empty: a minute's worth"
    )
    shadow_refused_calls = models.BigIntegerField(default=0, db_default=0)
    shadow_refused_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "environment", "api_key", "end_user", "mode"],
                name="rate_limit_once",
                nulls_distinct=False,
            )
        ]

    def __str__(self) -> str:
        return f"{self.rpm} rpm, {self.tpm} tpm, {self.concurrency} at once"


class CachePurge(models.Model):
    """Answers that were made until `at` are not given again: those of an environment, or of one model or key in it."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="cache_purges")
    api_key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="cache_purges")
    model = models.CharField(max_length=200, blank=True, default="")
    at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["environment", "api_key", "model"], name="cache_purge_once", nulls_distinct=False
            )
        ]

    def __str__(self) -> str:
        return f"{self.model or self.api_key_id or 'everything'} until {self.at}"


class NearMatching(models.Model):
    """Whether what one name is asked in an environment may be answered by a like question's answer (docs/near-matches.md)."""

    class Mode(models.TextChoices):
        OFF = "off"
        SHADOW = "shadow", "would-be answers are held against the real ones"
        ON = "on"

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="near_matchings")
    model = models.CharField(max_length=200, help_text="as callers ask for it")
    mode = models.CharField(max_length=8, choices=Mode, default=Mode.SHADOW, db_default=Mode.SHADOW)
    threshold = models.FloatField(default=0.92, db_default=0.92, help_text="the least cosine of two questions")
    agreement = models.FloatField(default=0.9, db_default=0.9, help_text="what the scores' mean must reach")
    scored = models.BigIntegerField(default=0, db_default=0)
    agreed = models.FloatField(default=0, db_default=0, help_text="sum of the agreement of what was scored")
    since = models.DateTimeField(default=timezone.now, help_text="from when on scores count")
    switched_off_at = models.DateTimeField(null=True, blank=True)
    switched_off_why = models.CharField(max_length=200, blank=True, default="", db_default="")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["environment", "model"], name="near_matching_once")]

    def __str__(self) -> str:
        return f"{self.model}: {self.mode}"


class NearScore(models.Model):
    """How far an answer that would have been given said what the real one did."""

    near = models.ForeignKey(NearMatching, models.CASCADE, related_name="scores")
    at = models.DateTimeField()
    likeness = models.FloatField(help_text="cosine of the two questions")
    agreement = models.FloatField(help_text="from 0 to 1")
    call_id = models.UUIDField(help_text="the call that was made")
    source_call_id = models.UUIDField(help_text="the call whose answer it would have got")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["near", "call_id"], name="near_score_once")]

    def __str__(self) -> str:
        return f"{self.agreement:.3f} at {self.likeness:.3f}"


class EmbeddingUse(models.Model):
    """What an environment's near matches have had embedded on one day (UTC)."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="embedding_use")
    day = models.DateField()
    texts = models.BigIntegerField()
    tokens = models.BigIntegerField()
    cpu_ms = models.FloatField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["environment", "day"], name="embedding_use_once")]

    def __str__(self) -> str:
        return f"{self.texts} texts on {self.day}"


class Provider(models.Model):
    """A place that serves models by one wire: OpenAI, Anthropic, or any server compatible with either."""

    class Wire(models.TextChoices):
        OPENAI = "openai"
        ANTHROPIC = "anthropic"

    class LimitField(models.TextChoices):
        NEWER = "max_completion_tokens"
        OLDER = "max_tokens"

    name = models.CharField(max_length=60, unique=True)
    wire = models.CharField(max_length=16, choices=Wire)
    base_url = models.CharField(max_length=500)
    model_names = ArrayField(
        models.CharField(max_length=200), default=list, blank=True, help_text="empty: every model priced for it"
    )
    api_version = models.CharField(
        max_length=40, blank=True, default="", db_default="", help_text="sent as ?api-version=, as Azure wants it"
    )
    key_header = models.CharField(
        max_length=60,
        blank=True,
        default="",
        db_default="",
        help_text="carries the secret instead of the wire's own header",
    )
    headers = models.JSONField(default=dict, blank=True, db_default={}, help_text="sent with every request; no secrets")
    limit_field = models.CharField(
        max_length=24,
        choices=LimitField,
        blank=True,
        default="",
        db_default="",
        help_text="by which chat completions are bounded there; empty: the newer one at OpenAI and Azure, else the older",
    )
    has_responses = models.BooleanField(
        default=True,
        db_default=True,
        help_text="whether it has /v1/responses; else these are put into chat completions",
    )
    is_enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class ProviderCredential(models.Model):
    """Where a provider's secret is to be found, and what may be asked of it; the secret itself is never in this table."""

    provider = models.ForeignKey(Provider, models.CASCADE, related_name="credentials")
    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, blank=True, related_name="provider_credentials")
    name = models.CharField(max_length=60, default="default", db_default="default")
    secret_ref = models.CharField(
        max_length=300, help_text="backend:name, e.g. env:OPENAI_API_KEY; empty: none is needed"
    )
    weight = models.PositiveIntegerField(default=1, db_default=1, validators=[MinValueValidator(1)])
    is_enabled = models.BooleanField(default=True, db_default=True)
    rpm = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    tpm = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    concurrency = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["provider", "tenant", "name"], name="credential_once", nulls_distinct=False)
        ]

    def __str__(self) -> str:
        return self.name


class Route(models.Model):
    """What a name means in an environment, a tenant, or everywhere: an ordered chain of models at providers."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, blank=True, related_name="routes")
    environment = models.ForeignKey(Environment, models.CASCADE, null=True, blank=True, related_name="routes")
    alias = models.CharField(max_length=200)
    steps = models.JSONField(
        help_text="[[{model, provider, weight}, …siblings], …]; provider empty: any that serves it"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "environment", "alias"], name="route_once", nulls_distinct=False)
        ]

    def __str__(self) -> str:
        return self.alias
