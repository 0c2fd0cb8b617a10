// A site to try `push.js` with: http://127.0.0.1:8080/login?user=ann signs in without a password.

import { readFileSync } from "node:fs";
import express from "express";
import session from "express-session";
import { push } from "./push.js";

const { PORT = "8080", PUSHSSE_URL = "http://127.0.0.1:8000", PUSHSSE_JWT_SECRET } = process.env;
const page = readFileSync(new URL("../index.html", import.meta.url), "utf8").replaceAll("http://127.0.0.1:8000", PUSHSSE_URL);

const app = express();
app.use(session({ secret: "for trying it out alone", resave: false, saveUninitialized: false, cookie: { maxAge: 1_800_000 } }));
app.get("/", (request, response) => response.type("html").send(page));
app.get("/login", (request, response, next) => {
  // A login begins a session of its own: whoever gave this browser the one before doesn't know the new id.
  request.session.regenerate((error) => {
    if (error) return next(error);
    request.session.user = String(request.query.user);
    return response.redirect("/");
  });
});
app.get("/logout", (request, response) => request.session.destroy(() => response.redirect("/")));
app.use("/push", push({ secret: PUSHSSE_JWT_SECRET, url: PUSHSSE_URL, userOf: (request) => request.session.user }));
app.listen(Number(PORT), "127.0.0.1", () => console.log(`http://127.0.0.1:${PORT}/`));
