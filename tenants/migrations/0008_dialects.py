"""What a provider speaks of its wire: the field of its limits, and whether it has responses."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0007_prompt_cache"),
    ]

    operations = [
        migrations.AddField(
            model_name="provider",
            name="limit_field",
            field=models.CharField(
                blank=True,
                choices=[("max_completion_tokens", "Newer"), ("max_tokens", "Older")],
                db_default="",
                default="",
                help_text="by which chat completions are bounded there; empty: the newer one at OpenAI and Azure, else the older",
                max_length=24,
            ),
        ),
        migrations.AddField(
            model_name="provider",
            name="has_responses",
            field=models.BooleanField(
                db_default=True,
                default=True,
                help_text="whether it has /v1/responses; else these are put into chat completions",
            ),
        ),
    ]
