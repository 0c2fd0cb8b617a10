// Shows what the gateway sends; one with the same tag takes the place of the one before.
self.addEventListener("push", (event) => {
  const { title, body, tag, event: id } = event.data.json();
  event.waitUntil(self.registration.showNotification(title, { body, tag, data: { event: id } }));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(self.clients.openWindow("/"));
});
