"use strict";

const STAGES = ["placed", "reserved", "paid", "packed", "fulfilled"];
const POLL_MILLISECONDS = 600;
const ordersUrl = document.body.dataset.ordersUrl;
const form = document.getElementById("order-form");
const message = document.getElementById("message");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function track(order) {
  const cell = element("td");
  const line = element("div", undefined, "track");
  const reached = STAGES.indexOf(order.status);
  if (reached >= 0) {
    STAGES.forEach((_, stage) => line.append(element("i", "", stage <= reached ? "on" : "")));
  }
  line.append(element("span", order.status, order.status.replace(" ", "-")));
  cell.append(line);
  if (order.remark) cell.append(element("small", order.remark));
  return cell;
}

function row(order) {
  const made = element("tr");
  const number = element("td");
  const link = element("a", order.number);
  link.href = `${ordersUrl}/${encodeURIComponent(order.number)}`;
  number.append(link);
  made.append(
    number,
    element("td", order.customer),
    element("td", order.lines.map((line) => `${line.quantity} × ${line.sku}`).join(", ")),
    element("td", (order.total_cents / 100).toFixed(2), "money"),
    track(order),
  );
  return made;
}

function show(shop) {
  document.getElementById("orders").replaceChildren(...shop.orders.map(row));
  const parts = Object.entries(shop.counts).map(([status, count]) => `${count} ${status}`);
  document.getElementById("counts").textContent = parts.join(", ") || "No orders yet.";
  for (const [sku, quantity] of Object.entries(shop.stock)) {
    const output = document.querySelector(`[data-stock="${CSS.escape(sku)}"]`);
    if (output) output.textContent = quantity;
  }
}

function say(text, isBad) {
  message.textContent = text;
  message.classList.toggle("bad", Boolean(isBad));
}

let wasAway = false;
async function poll() {
  try {
    const answer = await fetch(ordersUrl, { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`the shop answered ${answer.status}`);
    show(await answer.json());
    if (wasAway) say("The shop is back.");
    wasAway = false;
  } catch {
    wasAway = true;
    say("The shop does not answer; trying again.", true);
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

// The number is chosen here, so an order that is sent again because the answer got lost is placed once.
// crypto.randomUUID() exists only on secure pages; this works on any.
function newNumber() {
  return Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function place(order, attempts = 8) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await fetch(ordersUrl, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(order),
      });
      if (answer.status < 500) return { ok: answer.ok, content: await answer.json() };
    } catch {
      // no answer: sent again below
    }
    if (attempt === attempts) return { ok: false, content: { error: "The shop does not answer. Please try again later." } };
    await new Promise((resolve) => setTimeout(resolve, 250 * attempt));
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const lines = [...form.querySelectorAll("[data-article]")]
    .map((input) => ({ sku: input.name, quantity: Number(input.value) }))
    .filter((line) => line.quantity > 0);
  if (lines.length === 0) return say("Choose at least one article.", true);
  const times = Number(event.submitter?.value || 1);
  const order = { customer: form.elements.customer.value, card: form.elements.card.value, lines };
  const results = await Promise.all(Array.from({ length: times }, () => place({ number: newNumber(), ...order })));
  const refused = results.find((result) => !result.ok);
  if (refused) say(refused.content.error, true);
  else say(times === 1 ? `Order ${results[0].content.number} is placed.` : `${times} orders are placed.`);
});

poll();
