"""Whether an environment's prompts are marked for the provider's cache."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0006_webhooks"),
    ]

    operations = [
        migrations.AddField(
            model_name="environment",
            name="prompt_cache",
            field=models.CharField(
                choices=[("off", "callers mark for themselves"), ("auto", "marked where it pays")],
                db_default="off",
                default="off",
                help_text="whether long beginnings that come back are marked for the provider's cache",
                max_length=8,
            ),
        ),
    ]
