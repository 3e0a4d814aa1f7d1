"""Near matches per name of an environment, how far they agreed, and what embedding them took."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0010_limits_and_cache"),
    ]

    operations = [
        migrations.CreateModel(
            name="NearMatching",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("model", models.CharField(help_text="as callers ask for it", max_length=200)),
                (
                    "mode",
                    models.CharField(
                        choices=[
                            ("off", "Off"),
                            ("shadow", "would-be answers are held against the real ones"),
                            ("on", "On"),
                        ],
                        db_default="shadow",
                        default="shadow",
                        max_length=8,
                    ),
                ),
                (
                    "threshold",
                    models.FloatField(db_default=0.92, default=0.92, help_text="the least cosine of two questions"),
                ),
                (
                    "agreement",
                    models.FloatField(db_default=0.9, default=0.9, help_text="what the scores' mean must reach"),
                ),
                ("scored", models.BigIntegerField(db_default=0, default=0)),
                (
                    "agreed",
                    models.FloatField(db_default=0, default=0, help_text="sum of the agreement of what was scored"),
                ),
                (
                    "since",
                    models.DateTimeField(default=django.utils.timezone.now, help_text="from when on scores count"),
                ),
                ("switched_off_at", models.DateTimeField(blank=True, null=True)),
                ("switched_off_why", models.CharField(blank=True, db_default="", default="", max_length=200)),
                (
                    "environment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="near_matchings",
                        to="tenants.environment",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="NearScore",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                ("likeness", models.FloatField(help_text="cosine of the two questions")),
                ("agreement", models.FloatField(help_text="from 0 to 1")),
                ("call_id", models.UUIDField(help_text="the call that was made")),
                ("source_call_id", models.UUIDField(help_text="the call whose answer it would have got")),
                (
                    "near",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="scores", to="tenants.nearmatching"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="EmbeddingUse",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateField()),
                ("texts", models.BigIntegerField()),
                ("tokens", models.BigIntegerField()),
                ("cpu_ms", models.FloatField()),
                (
                    "environment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="embedding_use",
                        to="tenants.environment",
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("environment", "day"), name="embedding_use_once")],
            },
        ),
        migrations.AddConstraint(
            model_name="nearmatching",
            constraint=models.UniqueConstraint(fields=("environment", "model"), name="near_matching_once"),
        ),
        migrations.AddConstraint(
            model_name="nearscore",
            constraint=models.UniqueConstraint(fields=("near", "call_id"), name="near_score_once"),
        ),
    ]
