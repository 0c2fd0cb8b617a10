// Draws openapi.json: calls by tag, each with parameters, bodies, answers, examples and what may go wrong.
// All text from the document is set as text, never as HTML.
const METHODS = ["get", "post", "put", "patch", "delete"];
// Deeper members of a schema are in the document.
const DEPTH = 6;
const at = (id) => document.getElementById(id);
let api;

function make(tag, { text, ...attributes } = {}, ...inner) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.append(...marked(text));
  made.append(...inner.filter(Boolean));
  return made;
}

// `code` between backticks.
function marked(text) {
  return String(text).split("`").map((part, place) => {
    if (place % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
}

function resolved(schema) {
  const found = schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
  return found ?? {};
}

const nameOf = (schema) => schema?.$ref?.split("/").pop();

// A schema's kind in a few words.
function kind(schema) {
  if (nameOf(schema)) return nameOf(schema);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.anyOf && !schema.properties) return schema.anyOf.map(kind).join(" | ");
  if (schema.type === "array") return `array of ${kind(schema.items ?? {})}`;
  if (schema.type === "object" && schema.additionalProperties) {
    return `object of ${kind(schema.additionalProperties)}`;
  }
  return [schema.type ?? "any", schema.format && `(${schema.format})`].filter(Boolean).join(" ");
}

function bounds(schema) {
  const words = [];
  const say = (name, text) => { if (schema[name] !== undefined) words.push(`${text} ${schema[name]}`); };
  say("minimum", "from"); say("maximum", "to");
  say("minLength", "at least, in characters:"); say("maxLength", "at most, in characters:");
  say("minItems", "at least, in items:"); say("maxItems", "at most, in items:");
  // A pattern with words of its own is for programs.
  if (!schema.description) say("pattern", "pattern");
  if (schema.default !== undefined) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join("; ");
}

// The schemas that a member leads to, through arrays and choices.
function inside(schema) {
  if (schema.$ref) return [schema];
  if (schema.items) return inside(schema.items);
  if (schema.anyOf) return schema.anyOf.flatMap(inside);
  return typeof schema.additionalProperties === "object" ? inside(schema.additionalProperties) : [];
}

function members(schema, above = []) {
  const whole = resolved(schema);
  const path = [...above, nameOf(schema)];
  if (!whole.properties) return null;
  const list = make("dl", { class: "members" });
  for (const [name, member] of Object.entries(whole.properties)) {
    const term = make("dt", {}, make("code", {}, name), " ", make("small", {}, kind(member)));
    if (whole.required?.includes(name)) term.append(" ", make("small", { class: "required" }, "required"));
    const told = make("dd");
    if (member.description) told.append(make("p", { text: member.description }));
    if (bounds(member)) told.append(make("small", {}, bounds(member)));
    for (const next of path.length < DEPTH ? inside(member) : []) {
      if (path.includes(nameOf(next))) continue;
      const deeper = members(next, path);
      if (deeper) told.append(make("details", {}, make("summary", {}, nameOf(next)), deeper));
    }
    list.append(term, told);
  }
  return list;
}

function example(value) {
  return make("pre", { tabindex: "0" }, typeof value === "string" ? value : JSON.stringify(value, null, 2));
}

function content(media) {
  return Object.entries(media ?? {}).map(([type, { schema, example: given, ...more }]) => {
    const made = make("div", { class: "media" }, make("p", {}, make("code", {}, type), " ", kind(schema)));
    const about = resolved(schema).description;
    if (about) made.append(make("p", { text: about }));
    if (given !== undefined) made.append(example(given));
    const list = members(schema);
    if (list) made.append(make("details", {}, make("summary", {}, "Members"), list));
    for (const [event, data] of Object.entries(more["x-events"] ?? {})) {
      made.append(make("details", {}, make("summary", {}, "event ", make("code", {}, event)), members(data)));
    }
    return made;
  });
}

function parameters(given) {
  if (!given?.length) return null;
  const body = make("tbody");
  for (const each of given) {
    const samples = each.schema.examples ?? each.examples ?? [];
    body.append(make("tr", {},
      make("th", { scope: "row" }, make("code", {}, each.name), each.required ? " *" : ""),
      make("td", {}, each.in),
      make("td", {}, kind(each.schema)),
      make("td", { text: [each.description, bounds(each.schema)].filter(Boolean).join("; ") },
        samples.length ? make("small", {}, ` such as ${samples.join(", ")}`) : null)));
  }
  const head = make("tr", {}, ...["name", "in", "type", "meaning"].map((each) => make("th", { scope: "col" }, each)));
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Parameters" },
    make("table", {}, make("caption", {}, "Parameters"), make("thead", {}, head), body));
}

function answers(responses) {
  return Object.entries(responses).map(([status, response]) => {
    const line = make("summary", {}, make("code", {}, status), ` ${response.description}`);
    const code = Object.values(response.content ?? {}).map((each) => each.example?.code ?? each.example?.error?.code);
    if (status >= "400" && code[0]) line.append(", such as ", make("code", {}, code[0]));
    const more = Object.entries(response.headers ?? {}).map(([name, { description }]) =>
      make("p", {}, make("code", {}, name), ": ", ...marked(description ?? "")));
    return make("details", { class: status < "400" ? "good" : "bad" }, line, ...content(response.content), ...more);
  });
}

function call(path, method, operation) {
  const made = make("details", { class: "call", id: operation.operationId });
  made.append(make("summary", {},
    make("b", { class: method }, method.toUpperCase()), " ", make("code", {}, path), " ", make("span", {}, operation.summary)));
  if (operation.description) made.append(make("p", { text: operation.description }));
  const list = parameters(operation.parameters);
  if (list) made.append(list);
  if (operation.requestBody) {
    made.append(make("h3", {}, operation.requestBody.required ? "Body" : "Body, which may be left out"));
    made.append(...content(operation.requestBody.content));
  }
  made.append(make("h3", {}, "Answers"), ...answers(operation.responses));
  const { operationId, summary, description = "", parameters: given = [] } = operation;
  made.dataset.words = [method, path, operationId, summary, description, ...given.map((each) => each.name)].join(" ").toLowerCase();
  return made;
}

function draw() {
  at("title").textContent = `${api.info.title} ${api.info.version}`;
  at("about").textContent = api.info.description;
  const sections = new Map(api.tags.map(({ name, description }) => {
    const id = `tag-${name.toLowerCase().replaceAll(" ", "-")}`;
    at("tags").append(make("a", { href: `#${id}` }, name));
    return [name, make("section", { id }, make("h2", {}, name), make("p", { text: description }))];
  }));
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => each in operations)) {
      sections.get(operations[method].tags[0]).append(call(path, method, operations[method]));
    }
  }
  at("calls").replaceChildren(...sections.values());
  at("calls").removeAttribute("aria-busy");
}

function find() {
  const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of at("calls").querySelectorAll("section")) {
    const calls = [...section.querySelectorAll(".call")];
    for (const each of calls) each.hidden = !words.every((word) => each.dataset.words.includes(word));
    section.hidden = calls.every((each) => each.hidden);
  }
}

function show() {
  const named = location.hash && at(decodeURIComponent(location.hash.slice(1)));
  if (named?.matches(".call")) named.open = true;
  named?.scrollIntoView?.();
}

try {
  const reply = await fetch("openapi.json");
  if (!reply.ok) throw new Error(`openapi.json: status ${reply.status}`);
  api = await reply.json();
  draw();
  show();
} catch (error) {
  at("state").textContent = `The interface can't be read: ${error.message}`;
}
at("find").addEventListener("input", find);
addEventListener("hashchange", show);
