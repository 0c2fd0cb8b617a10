import { connect } from "pushsse";
import { useEffect, useRef, useState } from "react";

/** A person's stream in a component. What `options` are at first counts; tabs and components share one stream. */
export function usePush(options) {
  const first = useRef(options);
  const [push, setPush] = useState(null);
  const [state, setState] = useState("connecting");
  const [events, setEvents] = useState([]);

  useEffect(() => {
    const opened = connect(first.current);
    opened.on("state", (now) => setState(now.state));
    opened.on("event", (event) => setEvents((before) => [event, ...before].slice(0, 100)));
    opened.on("gap", () => setEvents([])); // something is missing: load what you show anew
    setPush(opened);
    return () => opened.close();
  }, []);

  return { push, state, events };
}
