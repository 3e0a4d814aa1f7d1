"""Answers that are given again are calls too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0012_closed"),
    ]

    operations = [
        migrations.AddField(
            model_name="call",
            name="cache_share_bps",
            field=models.SmallIntegerField(
                help_text="what the plan takes of it, in hundredths of a percent", null=True
            ),
        ),
        migrations.AddField(
            model_name="call",
            name="cached",
            field=models.TextField(
                blank=True,
                choices=[
                    ("", "made for this call"),
                    ("exact", "kept from the same question"),
                    ("coalesced", "shared with the same question in flight"),
                    ("near", "kept from a question that is much alike"),
                ],
                db_default="",
                default="",
            ),
        ),
        migrations.AddField(
            model_name="call",
            name="cached_age_seconds",
            field=models.IntegerField(null=True),
        ),
        migrations.AddField(
            model_name="call",
            name="cached_from",
            field=models.UUIDField(help_text="the call whose answer was given", null=True),
        ),
        migrations.AddField(
            model_name="call",
            name="saved_nano",
            field=models.BigIntegerField(
                db_default=0, default=0, help_text="what the source call was charged, less what this one is"
            ),
        ),
        migrations.AddField(
            model_name="plan",
            name="cache_hit_bps",
            field=models.PositiveIntegerField(
                db_default=0, default=0, help_text="what an answer that is given again is charged, of what it saved"
            ),
        ),
        migrations.AlterField(
            model_name="call",
            name="evidence",
            field=models.TextField(
                blank=True,
                choices=[
                    ("", "nothing was charged"),
                    ("provider", "the provider's own usage"),
                    ("counted", "counted from what was relayed"),
                    ("cache", "what the source call was charged"),
                ],
                default="",
            ),
        ),
    ]
