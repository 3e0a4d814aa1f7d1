"""An attempt whose stream was closed since its caller had gone."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0011_flat"),
    ]

    operations = [
        migrations.AlterField(
            model_name="attempt",
            name="outcome",
            field=models.TextField(
                choices=[
                    ("sent", "maybe sent, end not known yet"),
                    ("answered", "the provider answered in full"),
                    ("refused", "the provider answered with an error"),
                    ("broken", "the answer broke off"),
                    ("closed", "closed by us, since its caller had gone"),
                    ("unsent", "surely never reached the provider"),
                    ("unknown", "sent, and nobody can say how it ended"),
                ],
                default="sent",
            ),
        ),
    ]
