// pushsse beside Express: copy this file, and `app.use("/push", push({ … }))` after your sessions.

import { Router } from "express";
import jwt from "jsonwebtoken";

/**
 * `secret` is the node's PUSHSSE_JWT_SECRET, `url` where the node takes administrators' calls. `userOf(request)` is what
 * names this person in the `to` of your events, or nothing for nobody.
 */
export function push({ secret, url, userOf }) {
  const router = Router();
  const token = (user, scope, seconds) => jwt.sign({ sub: user, scope }, secret, { expiresIn: seconds });   // with `iat`

  router.use((request, response, next) => {
    request.person = userOf(request);
    if (!request.person) return response.sendStatus(401);
    response.set("Cache-Control", "no-store");
    return next();
  });

  // PUSHSSE_AUTH_URL: the node asks here, with a request's cookie, whose session that is.
  router.get("/session", (request, response) => {
    const left = request.session.cookie.maxAge ?? 3_600_000;              // null: until the browser closes
    response.json({ user: request.person, expires_in_s: Math.floor(left / 1000) });
  });

  // For a page of another site, or an app: a token of ten minutes.
  router.get("/token", (request, response) => {
    response.type("text/plain").send(token(request.person, "pushsse:stream pushsse:ask pushsse:preferences", 600));
  });

  // For a page that must not hold a token: a ticket, which opens one stream and nothing else.
  router.get("/ticket", async (request, response) => {
    const reply = await fetch(`${url}/v1/tickets`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token("site", "pushsse:admin", 60)}`, "Content-Type": "application/json" },
      body: JSON.stringify({ user: request.person }),
      signal: AbortSignal.timeout(5000),
    });
    response.status(reply.status).type("application/json").send(await reply.text());
  });

  return router;
}
