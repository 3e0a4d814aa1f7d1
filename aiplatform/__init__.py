"""The Django project of aiplatform: settings, the gateway, and what it all stands on."""
