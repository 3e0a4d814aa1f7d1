"""Limits of end users with bursts of their own, what keys are bound to, and whether answers are kept."""

import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0009_on_disconnect"),
    ]

    operations = [
        migrations.CreateModel(
            name="CachePurge",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("model", models.CharField(blank=True, default="", max_length=200)),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="ratelimit",
            name="rate_limit_once",
        ),
        migrations.AddField(
            model_name="apikey",
            name="allowed_endpoints",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=60),
                blank=True,
                db_default=[],
                default=list,
                help_text="empty: every one",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="allowed_models",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=200),
                blank=True,
                db_default=[],
                default=list,
                help_text="names that it may ask for, `gpt-5*` for all that begin so; empty: every one",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="allowed_networks",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=50),
                blank=True,
                db_default=[],
                default=list,
                help_text="addresses in CIDR form that may use it; empty: every one",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="allowed_origins",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=300),
                blank=True,
                db_default=[],
                default=list,
                help_text="pages of browsers that may use it, and then nobody else may; empty: no page may",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="environment",
            name="cache",
            field=models.CharField(
                choices=[
                    ("off", "nothing is kept, whatever a request asks"),
                    ("on_request", "where a request asks for it by Cache-Control: max-age"),
                    ("on", "for every request that does not refuse it"),
                ],
                db_default="on_request",
                default="on_request",
                help_text="whether answers are kept and given again",
                max_length=12,
            ),
        ),
        migrations.AddField(
            model_name="environment",
            name="cache_normalises",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="what differs in white space and case alone is the same question",
            ),
        ),
        migrations.AddField(
            model_name="environment",
            name="cache_ttl_seconds",
            field=models.PositiveIntegerField(
                db_default=300,
                default=300,
                help_text="how old an answer may be that is given again; a request may ask for less",
                validators=[django.core.validators.MinValueValidator(1)],
            ),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="end_user",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="empty: all together; *: each end user by himself; else this one",
                max_length=256,
            ),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="mode",
            field=models.CharField(
                choices=[("enforce", "Enforce"), ("shadow", "counts what it would have refused")],
                db_default="enforce",
                default="enforce",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="rpm_burst",
            field=models.PositiveBigIntegerField(
                blank=True,
                help_text="requests at once; empty: a minute's worth",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
            ),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="shadow_refused_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="shadow_refused_calls",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="tpm_burst",
            field=models.PositiveBigIntegerField(
                blank=True,
                help_text="tokens at once; empty: a minute's worth",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
            ),
        ),
        migrations.AddConstraint(
            model_name="ratelimit",
            constraint=models.UniqueConstraint(
                fields=("tenant", "environment", "api_key", "end_user", "mode"),
                name="rate_limit_once",
                nulls_distinct=False,
            ),
        ),
        migrations.AddField(
            model_name="cachepurge",
            name="api_key",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="cache_purges",
                to="tenants.apikey",
            ),
        ),
        migrations.AddField(
            model_name="cachepurge",
            name="environment",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="cache_purges", to="tenants.environment"
            ),
        ),
        migrations.AddConstraint(
            model_name="cachepurge",
            constraint=models.UniqueConstraint(
                fields=("environment", "api_key", "model"), name="cache_purge_once", nulls_distinct=False
            ),
        ),
    ]
