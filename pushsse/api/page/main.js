// Puts the page together: one session, and the parts that show it.

import { at } from "./dom.js";
import { Feed } from "./feed.js";
import { Questions } from "./questions.js";
import { Session } from "./session.js";
import { StateLine } from "./state.js";
import { Panel, Switches } from "./switches.js";
import { Views } from "./views.js";
import { switchLanguage, translate } from "./words.js";

translate();
export const session = new Session();
const stateLine = new StateLine(session);
const switches = new Switches(session, () => feed.retitle());
const feed = new Feed(session, { titleOf: (type) => switches.titleOf(type), loaded: () => stateLine.loaded() });
new Questions(session);
new Views(session);
new Panel();
at("language").addEventListener("click", switchLanguage);
session.open();
