/* SPDX-License-Identifier: Apache-2.0
 *
 * What the page says: figures, states and settings of a video as words. Pure functions; all text is plain text. */

export function span(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function ago(unixSeconds) {
  const seconds = Date.now() / 1000 - unixSeconds;
  return seconds < 5 ? "just now" : `${span(seconds)} ago`;
}

export const moment = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString();
export const number = (value) => String(Math.round(value * 1000) / 1000);
export const isNumber = (value) => typeof value === "number";

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export function brief(text) {
  const characters = [...text.trim()];
  return characters.length > 60 ? `${characters.slice(0, 60).join("")}…` : characters.join("");
}

export const STATES = {
  queued: "Queued",
  running: "Running",
  completed: "Completed",
  expired: "Expired",
  failed: "Failed",
  cancelled: "Cancelled",
};

/* What the page calls the state: finer than the API's status. */
export function stateOf(video) {
  if (video.status === "in_progress") return "running";
  if (video.status === "failed" && video.error?.code === "cancelled") return "cancelled";
  if (video.status === "completed" && video.expires_at && video.expires_at * 1000 <= Date.now()) return "expired";
  return video.status in STATES ? video.status : "queued";
}

export const isFinal = (video) => video.status === "completed" || video.status === "failed";

const STAGES = {
  text: "reading the prompt",
  reference: "reading the picture",
  denoise: "denoising",
  decode: "decoding",
  mux: "writing the file",
};

/* One line that breaks between its parts only. */
export const joined = (parts) => parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");

export function progressText(row) {
  const { video, step } = row;
  const parts = [];
  if (video.status === "queued") {
    if (!isNumber(video.queue_position)) parts.push("waiting");
    else parts.push(video.queue_position > 0 ? `${video.queue_position} before it` : "next in line");
  } else {
    parts.push(`${video.progress} %`);
    if (video.stage) parts.push(STAGES[video.stage] ?? video.stage);
    if (step && step.stage === video.stage && step.count > 1) parts.push(`${step.index + 1} of ${step.count}`);
  }
  if (isNumber(video.eta_seconds)) parts.push(`${span(Math.max(0, video.eta_seconds))} left`);
  return joined(parts);
}

export function metaText(video) {
  const parts = [video.model, video.size.replace("x", " × "), `${video.num_frames} frames`];
  if (video.service_tier && video.service_tier !== "default") parts.push(video.service_tier);
  parts.push(ago(video.created_at));
  return joined(parts);
}

export const waitText = (seconds) => (seconds < 1 ? "none" : span(seconds));

/* kinora_device_ready{device="cuda:0"} 1 and its sisters, by device. */
export function parseDevices(text) {
  const devices = new Map();
  for (const [, name, device, value] of text.matchAll(
    /^kinora_(device_\w+|worker_restarts_total)\{device="([^"\\]{1,64})"[^}\n]*\} (\S+)/gm,
  )) {
    if (!devices.has(device)) devices.set(device, {});
    devices.get(device)[name] = Number(value);
  }
  return devices;
}

// Who shares a slice now: device -> {leader, model, members}.
export function parseGroups(text) {
  const groups = new Map();
  for (const [, device, leader, model, members] of text.matchAll(
    /^kinora_group_members\{device="([^"\\]{1,64})",leader="([^"\\]{1,64})",model="([^"\\]{1,128})"\} (\d+)/gm,
  )) {
    if (Number(members) > 0) groups.set(device, { leader, model, members: Number(members) });
  }
  return groups;
}

export function factsOf(video) {
  const facts = [
    ["Id", video.id],
    ["Model", video.model],
    ["Size", video.size.replace("x", " × ")],
    ["Length", `${video.num_frames} frames, ${number(video.fps)} per second`],
    ["Steps", String(video.num_inference_steps)],
    ["Guidance", number(video.guidance_scale)],
    ["Seed", String(video.seed)],
    ["Priority", video.service_tier],
    ["Submitted", moment(video.created_at)],
  ];
  if (video.started_at) facts.push(["Waited", span(video.started_at - video.created_at)]);
  if (video.completed_at) facts.push(["Finished", moment(video.completed_at)]);
  if (isNumber(video.inference_time_s)) facts.push(["Device time", span(video.inference_time_s)]);
  if (video.expires_at) facts.push([stateOf(video) === "expired" ? "Expired" : "Kept until", moment(video.expires_at)]);
  if (video.error) facts.push(["Error", `${video.error.code}: ${video.error.message}`]);
  return facts;
}
