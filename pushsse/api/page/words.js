// All words of the page, in both languages, and times as people say them.

const WORDS = {
  en: {
    title: "pushsse", skip_to_events: "Skip to the events", skip_to_desk: "Skip to the desk",
    skip_to_overview: "Skip to the overview", views: "Views", language: "中文", language_label: "切换到中文",
    connecting: "Connecting", again: "Connecting again", live: "Live", polling: "Live, by polling", catching_up: "Catching up",
    gap: "Gap: loading anew", signed_out: "Signed out", ended: "Ended", closed: "Closed", try_again: "Try again",
    gap_note: "Some events are missing, which the service no longer has.", ok: "OK",
    shutdown: "the service restarts", slow: "the connection was too slow", lifetime: "a new connection is due",
    overloaded: "the service is busy", token_expired: "the token has expired", no_token: "there is no token",
    token_missing: "there is no token", token_invalid: "the token isn't valid", revoked: "an administrator has ended it",
    ticket_used: "the ticket has been used", user_changed: "somebody else has signed in",
    too_many_streams: "too many streams are open", replaced: "it was opened elsewhere", origin_refused: "this site isn't allowed",
    scope_missing: "the token doesn't allow it", unread: "{n} unread", sign_out: "Sign out", person: "You are {user}",
    way_in: "Sign in", token: "Token", token_help: "It stays in this tab, and is gone when the tab is closed.", open: "Open",
    login: "Sign in with your account",
    events: "Events", empty: "Nothing has come in the last hour. New events show up here by themselves.",
    new: "Show {n} new", read_all: "Mark all as read", is_unread: "unread", raw: "Raw data", copy: "Copy", copied: "Copied",
    came: "New: {title}", cut: "… and {n} more",
    settings: "Settings", switches: "Switches", no_types: "There are no types yet. The first event of a type brings its switch.",
    always: "Always on", urgent: "Urgent", whole_category: "All of {name}", find_type: "Find a switch", others: "Others",
    saved: "Saved", not_saved: "Not saved: {why}", is_on: "{title} is on", is_off: "{title} is off", close: "Close",
    quiet: "Quiet hours", quiet_help: "Events are still shown. Apps make no sound in these hours, but for urgent types.",
    from: "From", to: "To", zone: "Time zone", add: "Add hours", remove: "Remove", save: "Save", days: "Days",
    pause: "Pause", pause_1: "1 hour", pause_8: "8 hours", resume: "Resume", paused: "Quiet until {until}",
    mon: "Mo", tue: "Tu", wed: "We", thu: "Th", fri: "Fr", sat: "Sa", sun: "Su",
    ask: "Ask", question: "Your question", hint: "Ask a question", send: "Send", show_talk: "Show the conversation",
    hide_talk: "Hide the conversation", talk: "Conversation", fresh: "New conversation", pending: "Waiting for an answer…",
    answering: "Answering…", cancelled: "Stopped.", expired: "Nobody has answered in time.", failed: "No answer: {why}",
    handed_over: "A person will answer. You can go on meanwhile.", stop: "Stop", regenerate: "Again", up: "This helped",
    down: "This didn't help", hand_over: "Talk to a person", release: "Back to automatic answers", sources: "Sources",
    truncated: "The answer is longer than what is shown.", not_asked: "Not sent: {why}", staff: "staff", message: "A message",
    development: "Development", user: "Person", change: "Change", publish: "Publish", type: "Type", audience: "To",
    text: "Message", published: "Published: {id}", plug: "Pull the plug", plug_help:
      "Cuts this page's line for 5 seconds, while 20 events are published for you.",
    plug_out: "The line is cut. {n} of 20 are published…", plug_in: "The line is back…", plug_done:
      "{missed} missed, {recovered} recovered, {lost} lost, {twice} twice", plug_failed: "That didn't work: {why}",
    demo: "Start a demo", demo_stop: "Stop the demo", demo_help: "Four types and a trickle of events, until your first own event.",
    desk: "Desk", desk_empty: "Nobody is waiting.", desk_none: "Choose a conversation.", desk_waiting: "{n} waiting",
    desk_more: "These are the newest {n}.", desk_gone: "This conversation isn't handed over any more.", desk_release: "Hand back", desk_as: "As {name}",
    desk_released: "Automatic answers again.", desk_answers: "Answer: {text}", desk_message: "A message, not an answer",
    desk_target: "Reply to", desk_name: "Your name, as they see it", desk_sent: "Sent.", desk_taken: "Somebody else has answered this.",
    desk_waits: "Waits for an answer", back: "Back", earlier: "Show earlier", cancel: "Cancel", name: "Name",
    overview: "Overview", streams: "Streams", people: "People", published_s: "Published/s", delivered_s: "Delivered/s", lag: "Lag",
    dead_letters: "Dead letters", nodes: "Nodes", node: "Node", state: "State", behind: "Behind", cpu: "CPU", memory: "Memory",
    since: "Since", ready: "ready", no_redis: "Redis doesn't answer", no_database: "the database doesn't answer",
    held: "{n} partitions wait", silent: "says nothing", inside_only: "These calls are at the internal address alone.",
    catalogue: "Catalogue", catalogue_help: "How many people have switched a type on or off. All others have its default.",
    category: "Category", default: "Default", on: "on", off: "off", switched_on: "Switched on", switched_off: "Switched off",
    off_share: "Share of off", somebody: "A person", look_up: "Look up", event_id: "An event's id", explain: "Explain",
    is_there: "{user} is there. Streams: {n}", was_there: "{user} was last there {when}.", never_there: "{user} isn't there.",
    looking: "Looking…", kick: "Kick {user}", kick_help: "Ends all streams, and every token made until now is refused.",
    kicked: "{user} is out on all nodes within {n} s.",
    what_clicked: "Clicked", what_read: "Read", what_received: "Received", what_written: "Written to a stream", what_offline: "Nobody was there",
    what_switched_off: "Switched off", what_switched: "Switched", what_switch: "The switch then", what_expired: "Expired", what_published: "Published",
    what_collapsed: "Replaced", what_withdrawn: "Withdrawn", what_unknown: "Nothing is known of it",
    how_person: "by {by}", how_admin: "by the administrator {by}", how_import: "imported by {by}", how_development: "by {by}, in development",
    how_settings: "by the settings file", name_deleted: "somebody whose name was deleted",
    now: "now", none: "none", empty_message: "(no message)",
  },
  zh: {
    title: "pushsse", skip_to_events: "跳到事件", skip_to_desk: "跳到客服台",
    skip_to_overview: "跳到总览", views: "视图", language: "English", language_label: "Switch to English",
    connecting: "正在连接", again: "正在重新连接", live: "实时", polling: "实时（轮询）", catching_up: "正在补收",
    gap: "有缺失，正在重新加载", signed_out: "未登录", ended: "已结束", closed: "已关闭", try_again: "重试",
    gap_note: "有些事件已经缺失，服务端不再保留。", ok: "知道了",
    shutdown: "服务正在重启", slow: "连接太慢", lifetime: "需要换新连接",
    overloaded: "服务繁忙", token_expired: "令牌已过期", no_token: "没有令牌",
    token_missing: "没有令牌", token_invalid: "令牌无效", revoked: "已被管理员结束",
    ticket_used: "票据已被使用", user_changed: "已有其他人登录",
    too_many_streams: "打开的连接太多", replaced: "已在别处打开", origin_refused: "不允许此网站",
    scope_missing: "令牌没有此权限", unread: "{n} 条未读", sign_out: "退出", person: "当前用户：{user}",
    way_in: "登录", token: "令牌", token_help: "只保存在这个标签页，关闭后即消失。", open: "进入",
    login: "用您的账号登录",
    events: "事件", empty: "最近一小时没有事件。新事件会自动出现在这里。",
    new: "显示 {n} 条新事件", read_all: "全部标为已读", is_unread: "未读", raw: "原始数据", copy: "复制", copied: "已复制",
    came: "新事件：{title}", cut: "……还有 {n} 项",
    settings: "设置", switches: "开关", no_types: "还没有类型。某个类型的第一条事件会带来它的开关。",
    always: "必收", urgent: "紧急", whole_category: "整个“{name}”", find_type: "查找开关", others: "其他",
    saved: "已保存", not_saved: "未保存：{why}", is_on: "“{title}”已打开", is_off: "“{title}”已关闭", close: "关闭",
    quiet: "免打扰时间", quiet_help: "事件照常显示。在这些时间内应用不发出声音，紧急类型除外。",
    from: "从", to: "到", zone: "时区", add: "添加时间段", remove: "删除", save: "保存", days: "日期",
    pause: "暂停", pause_1: "1 小时", pause_8: "8 小时", resume: "恢复", paused: "免打扰至 {until}",
    mon: "一", tue: "二", wed: "三", thu: "四", fri: "五", sat: "六", sun: "日",
    ask: "提问", question: "您的问题", hint: "请输入问题", send: "发送", show_talk: "显示对话",
    hide_talk: "收起对话", talk: "对话", fresh: "新对话", pending: "等待回答……",
    answering: "正在回答……", cancelled: "已停止。", expired: "没有人及时回答。", failed: "没有答案：{why}",
    handed_over: "将由人工回答，您可以先做别的事。", stop: "停止", regenerate: "重新回答", up: "有帮助",
    down: "没有帮助", hand_over: "转人工", release: "恢复自动回答", sources: "来源",
    truncated: "完整的答案比显示的更长。", not_asked: "未发送：{why}", staff: "人工", message: "一条消息",
    development: "开发", user: "用户", change: "切换", publish: "发布", type: "类型", audience: "发给",
    text: "消息", published: "已发布：{id}", plug: "拔掉网线", plug_help:
      "切断本页连接 5 秒，同时向您发布 20 条事件。",
    plug_out: "连接已切断，已发布 {n}/20 条……", plug_in: "连接已恢复……", plug_done:
      "错过 {missed} 条，补收 {recovered} 条，丢失 {lost} 条，重复 {twice} 条", plug_failed: "没有成功：{why}",
    demo: "开始演示", demo_stop: "停止演示", demo_help: "四种类型和陆续到来的事件，直到您发布第一条自己的事件。",
    desk: "客服台", desk_empty: "没有人在等待。", desk_none: "请选择一个对话。", desk_waiting: "{n} 条等待中",
    desk_more: "这是最新的 {n} 个对话。", desk_gone: "此对话已不再由人工处理。", desk_release: "转回自动", desk_as: "以“{name}”的名义",
    desk_released: "已恢复自动回答。", desk_answers: "回答：{text}", desk_message: "发一条消息，不作为回答",
    desk_target: "回复", desk_name: "对方看到的名字", desk_sent: "已发送。", desk_taken: "已有其他人回答。",
    desk_waits: "等待回答", back: "返回", earlier: "显示更早的", cancel: "取消", name: "名字",
    overview: "总览", streams: "连接", people: "在线用户", published_s: "发布/秒", delivered_s: "送达/秒", lag: "积压",
    dead_letters: "死信", nodes: "节点", node: "节点", state: "状态", behind: "落后", cpu: "CPU", memory: "内存",
    since: "开始于", ready: "就绪", no_redis: "Redis 无响应", no_database: "数据库无响应",
    held: "{n} 个分区在等待", silent: "没有消息", inside_only: "这些接口只在内部地址上提供。",
    catalogue: "类型目录", catalogue_help: "有多少人打开或关闭了某个类型，其他人采用默认值。",
    category: "类别", default: "默认", on: "开", off: "关", switched_on: "打开人数", switched_off: "关闭人数",
    off_share: "关闭比例", somebody: "查看用户", look_up: "查询", event_id: "事件编号", explain: "查明经过",
    is_there: "{user} 在线，连接数：{n}", was_there: "{user} 上次在线：{when}。", never_there: "{user} 不在线。",
    looking: "正在查询……", kick: "踢出 {user}", kick_help: "将结束所有连接，此前签发的令牌全部失效。",
    kicked: "{n} 秒内 {user} 将从所有节点退出。",
    what_clicked: "已点击", what_read: "已读", what_received: "已收到", what_written: "已写入连接", what_offline: "当时不在线",
    what_switched_off: "已关闭此类型", what_switched: "更改开关", what_switch: "当时的开关", what_expired: "已过期", what_published: "已发布",
    what_collapsed: "已被替换", what_withdrawn: "已撤回", what_unknown: "没有任何记录",
    how_person: "由 {by} 设置", how_admin: "由管理员 {by} 设置", how_import: "由 {by} 导入", how_development: "由 {by} 设置（开发模式）",
    how_settings: "由配置文件设置", name_deleted: "已删除的用户",
    now: "刚刚", none: "无", empty_message: "（无内容）",
  },
};
const KEPT = "pushsse.language";

function chosen() {
  try {
    const kept = localStorage.getItem(KEPT);
    if (kept in WORDS) return kept;
  } catch {
    // Storage may be refused.
  }
  return /^zh\b/i.test(navigator.language) ? "zh" : "en";
}

export const language = chosen();
/** As HTML and HTTP name it. */
export const locale = language === "zh" ? "zh-CN" : navigator.language.startsWith("en") ? navigator.language : "en";

/** The words of a name, with values in their places; a name without words is itself. */
export function t(name, values = {}) {
  const words = Object.hasOwn(WORDS[language], name) ? WORDS[language][name] : name;
  return words.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

export const knows = (name) => Object.hasOwn(WORDS.en, name);

/** Puts the words into the page: `data-t` is an element's text, `data-t-label` its label, `data-t-hint` its placeholder. */
export function translate(root = document) {
  document.documentElement.lang = locale;
  for (const each of root.querySelectorAll("[data-t]")) each.textContent = t(each.dataset.t);
  for (const each of root.querySelectorAll("[data-t-label]")) each.setAttribute("aria-label", t(each.dataset.tLabel));
  for (const each of root.querySelectorAll("[data-t-hint]")) each.placeholder = t(each.dataset.tHint);
}

/** The other language, from now on in this browser. The page is loaded anew: what it shows comes back. */
export function switchLanguage() {
  try {
    localStorage.setItem(KEPT, language === "zh" ? "en" : "zh");
  } catch {
    return;
  }
  location.reload();
}

const relative = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
const exactly = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "medium" });
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60]];

/** How long ago; what is newer than a minute is "now". */
export function ago(when, now = Date.now()) {
  const seconds = (when - now) / 1_000;
  const [unit, size] = UNITS.find(([, each]) => Math.abs(seconds) >= each) ?? [];
  return unit ? relative.format(Math.trunc(seconds / size), unit) : t("now");
}

export const exact = (when) => exactly.format(when);
