"""A site to try `push.py` with: http://127.0.0.1:8080/login?user=ann signs in without a password."""

import os
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

HERE = Path(__file__).parent
PORT = os.environ.get("PORT", "8080")
settings.configure(
    SECRET_KEY="for trying it out alone",
    DEBUG=True,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("SITE_DB", HERE / "site.db"),
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    PUSHSSE_JWT_SECRET=os.environ["PUSHSSE_JWT_SECRET"],
    PUSHSSE_URL=os.environ.get("PUSHSSE_URL", "http://127.0.0.1:8000"),
)
django.setup()

from django.contrib import auth  # noqa: E402
from django.urls import include, path  # noqa: E402


def page(request: HttpRequest) -> HttpResponse:
    text = (HERE.parent / "index.html").read_text()
    return HttpResponse(text.replace("http://127.0.0.1:8000", settings.PUSHSSE_URL))


def login(request: HttpRequest) -> HttpResponse:
    user, _ = auth.get_user_model().objects.get_or_create(username=request.GET["user"])
    auth.login(request, user)
    return HttpResponseRedirect("/")


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponseRedirect("/")


urlpatterns = [
    path("", page),
    path("login", login),
    path("logout", logout),
    path("push/", include("push")),
]

if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    call_command("migrate", verbosity=0)
    call_command("runserver", f"127.0.0.1:{PORT}", use_reloader=False)
