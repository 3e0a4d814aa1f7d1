"""What becomes of a call whose caller goes."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0008_dialects"),
    ]

    operations = [
        migrations.AddField(
            model_name="environment",
            name="on_disconnect",
            field=models.CharField(
                choices=[
                    ("finish", "carried out to the end"),
                    ("cancel", "streams are closed at once"),
                    ("drain", "streams are heard for their usage alone"),
                ],
                db_default="finish",
                default="finish",
                help_text="what becomes of a call whose caller goes",
                max_length=8,
            ),
        ),
    ]
