// The settings of a conversation: the form, and the fields of requests that they become.

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty",
  "frequency_penalty", "max_tokens", "seed",
];
const TEXTS = ["system", "stop", "thinking", "format", "schema", "tools"];
const LAST = "llama_cffi.settings";

/** A setting that cannot be sent: `field` is its name. */
export class SettingError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Return the settings that a new conversation gets: those that were used last. */
export function lastSettings() {
  try {
    return JSON.parse(localStorage.getItem(LAST)) ?? {};
  } catch {
    return {};
  }
}

/** Fill the form; `onChange` gets the settings, of which empty ones are left out. */
export class SettingsForm {
  constructor(form, onChange) {
    this.form = form;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      this.#mark(event.target.name, "");
      this.#update();
      const settings = this.read();
      try {
        localStorage.setItem(LAST, JSON.stringify(settings));
      } catch {
        // The browser keeps nothing.
      }
      onChange(settings);
    });
  }

  /** Show settings. */
  show(settings) {
    for (const name of [...NUMBERS, ...TEXTS]) {
      const field = this.form.elements[name];
      field.value = settings[name] ?? (field.tagName === "SELECT" ? field.options[0].value : "");
      this.#mark(name, "");
    }
    this.form.elements.logprobs.checked = settings.logprobs ?? true;
    this.#update();
  }

  /** Return what the form says. */
  read() {
    const { elements } = this.form;
    const settings = { logprobs: elements.logprobs.checked };
    for (const name of NUMBERS) {
      if (elements[name].value !== "") settings[name] = Number(elements[name].value);
    }
    for (const name of TEXTS) {
      if (elements[name].value.trim()) settings[name] = elements[name].value;
    }
    return settings;
  }

  /** Mark the field that an error is about. */
  showError(error) {
    this.#mark(error.field, error.message);
    const field = this.form.elements[error.field];
    field.closest("details").open = true;
    field.focus();
  }

  #mark(name, message) {
    const note = document.getElementById(`${name}-error`);
    if (!note) return;
    note.textContent = message;
    this.form.elements[name].toggleAttribute("aria-invalid", Boolean(message));
  }

  #update() {
    this.form.elements.schema.closest(".field").hidden = this.form.elements.format.value !== "schema";
  }
}

/** Return the fields of a request. */
export function requestFields(settings) {
  const fields = {};
  for (const name of NUMBERS) if (settings[name] !== undefined) fields[name] = settings[name];
  if (settings.stop) fields.stop = settings.stop.split("\n").filter(Boolean);
  if (settings.thinking === "on") fields.thinking = true;
  if (settings.thinking === "off") fields.thinking = false;
  if (settings.format === "json") fields.response_format = { type: "json_object" };
  if (settings.format === "schema") {
    const schema = parsed("schema", settings.schema ?? "", "a JSON Schema");
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (settings.tools) {
    const tools = [parsed("tools", settings.tools, "a list of functions")].flat();
    fields.tools = tools.map((tool) => (tool.function ? tool : { type: "function", function: tool }));
  }
  if (settings.logprobs ?? true) Object.assign(fields, { logprobs: true, top_logprobs: 5 });
  return fields;
}

function parsed(name, text, what) {
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object") return value;
  } catch (error) {
    throw new SettingError(name, `This is not JSON: ${error.message}`);
  }
  throw new SettingError(name, `This must be ${what}, as JSON.`);
}
