// What the scripts that try a client share: they print what each case came to, and command the test that runs them.
const url = process.argv[2];

export const tell = (name, data) => console.log(JSON.stringify({ name, data }));

// After a cut, a kept connection may still be about to break.
export async function command(what, which) {
  const response = await fetch(`${url}/test/${what}/${which}`, { method: "POST" });
  if (what !== "cut") return response;
  await new Promise((resolve) => setTimeout(resolve, 150));
  for (;;) {
    try {
      return await fetch(`${url}/v1/models?user=ann`);
    } catch {
      // Broken; the next one is new.
    }
  }
}

export async function eventually(check, what) {
  for (const end = Date.now() + 30_000; Date.now() < end;) {
    if (check()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`not within 30 s: ${what}`);
}
