"""pushsse beside Django: copy this file, and add `path("push/", include("push"))` to your urls.

Settings: PUSHSSE_JWT_SECRET is the node's; PUSHSSE_URL is where the node takes administrators' calls.
"""

import json
import time
import urllib.request

import jwt
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache


def name_of(request: HttpRequest) -> str:
    """What names this person in the `to` of your events; empty for nobody."""
    return request.user.get_username() if request.user.is_authenticated else ""


def made_token(user: str, scope: str, valid_s: int) -> str:
    now = int(time.time())
    claims = {"sub": user, "scope": scope, "iat": now, "exp": now + valid_s}
    return jwt.encode(claims, settings.PUSHSSE_JWT_SECRET, "HS256")


@never_cache
def session(request: HttpRequest) -> HttpResponse:
    """PUSHSSE_AUTH_URL: the node asks here, with a request's cookie, whose session that is."""
    if not (user := name_of(request)):
        return HttpResponse(status=401)
    return JsonResponse({"user": user, "expires_in_s": request.session.get_expiry_age()})


@never_cache
def token(request: HttpRequest) -> HttpResponse:
    """For a page of another site, or an app: a token of ten minutes."""
    if not (user := name_of(request)):
        return HttpResponse(status=401)
    scope = "pushsse:stream pushsse:ask pushsse:preferences"
    return HttpResponse(made_token(user, scope, 600), content_type="text/plain")


@never_cache
def ticket(request: HttpRequest) -> HttpResponse:
    """For a page that must not hold a token: a ticket, which opens one stream and nothing else."""
    if not (user := name_of(request)):
        return HttpResponse(status=401)
    asked = urllib.request.Request(
        f"{settings.PUSHSSE_URL}/v1/tickets",
        json.dumps({"user": user}).encode(),
        {
            "Authorization": f"Bearer {made_token('site', 'pushsse:admin', 60)}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(asked, timeout=5) as reply:
        return HttpResponse(reply.read(), content_type="application/json")


urlpatterns = [path("session", session), path("token", token), path("ticket", ticket)]
