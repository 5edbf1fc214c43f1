// Shows a page of clusters at a time. Whatever comes from file names is set as text, never as markup.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const CLUSTERS_PER_PAGE = Number(byId("cluster-list").dataset.clustersPerPage);
  const MEMBERS_AT_FIRST = 12;

  const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

  const dataOf = (id) => {
    const block = byId(id);
    return block === null ? [] : JSON.parse(block.textContent);
  };

  const build = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };

  const name = (text, className) => {
    const element = build("bdi", className, text);
    element.title = text;
    return element;
  };

  // Each entry: {page, place, number} of a cluster among all; its data stays in its block until it is shown.
  let contents = null;
  let everything = null;
  let filtered = null;
  let words = [];
  let pageNumber = 0;

  const searchable = (text) => text.normalize("NFC").toLowerCase();

  const allClusters = () => {
    if (everything !== null) return everything;
    everything = [];
    for (let page = 0; page < contents.pages; page += 1) {
      dataOf(`clusters-${page}`).forEach((cluster, place) => {
        const text = cluster.members.map((member) => searchable(`${member.uri}\n${member.id}`));
        everything.push({ page, place, number: page * CLUSTERS_PER_PAGE + place + 1, size: cluster.size, text });
      });
    }
    return everything;
  };

  const hasWords = (text) => words.every((word) => text.includes(word));

  const entriesOfPage = () => {
    if (filtered !== null) return filtered.slice(pageNumber * CLUSTERS_PER_PAGE, (pageNumber + 1) * CLUSTERS_PER_PAGE);
    return dataOf(`clusters-${pageNumber}`).map((_, place) => ({
      page: pageNumber,
      place,
      number: pageNumber * CLUSTERS_PER_PAGE + place + 1,
    }));
  };

  const clustersOfPage = () => {
    const blocks = new Map();
    const block = (id) => {
      if (!blocks.has(id)) blocks.set(id, dataOf(id));
      return blocks.get(id);
    };
    return entriesOfPage().map(({ page, place, number }) => {
      const cluster = block(`clusters-${page}`)[place];
      const thumbnails = block(`thumbnails-${page}`)[place];
      const members = cluster.members.map((member, index) => ({
        ...member,
        thumbnail: thumbnails[index],
        found: words.length > 0 && hasWords(searchable(`${member.uri}\n${member.id}`)),
      }));
      const [canonical, ...others] = members;
      return {
        ...cluster,
        number,
        members: [canonical, ...others.filter((member) => member.found), ...others.filter((member) => !member.found)],
      };
    });
  };

  const picture = (member) => {
    if (member.thumbnail === null) {
      const placeholder = build("span", "placeholder", "no preview");
      placeholder.setAttribute("role", "img");
      placeholder.setAttribute("aria-label", `${member.name}, no preview`);
      return placeholder;
    }
    const image = build("img");
    image.decoding = "async";
    image.alt = member.canonical ? `${member.name}, the canonical image` : `${member.name}, score ${member.score}`;
    image.src = member.thumbnail;
    return image;
  };

  const memberItem = (cluster, member, index) => {
    const item = build("li", "member");
    item.classList.toggle("canonical", member.canonical);
    item.classList.toggle("found", member.found);
    const opener = build("button", "thumbnail", picture(member));
    opener.type = "button";
    opener.addEventListener("click", () => compare(cluster, index));
    opener.append(member.canonical ? build("span", "badge", "Canonical") : build("span", "score", member.score));
    if (!member.canonical) opener.lastChild.title = "score against the canonical image";
    const facts = build("span", "facts", build("span", "", `${member.pixels} ·`), " ", build("span", "", member.bytes));
    item.append(opener, name(member.name, "name"), facts);
    return item;
  };

  const clusterItem = (cluster) => {
    const item = build("li", `card cluster wide-${Math.min(cluster.members.length, 5)}`);
    const heading = build("h2", "", plural(cluster.size, "image", "images"));
    const head = build("header", "", heading);
    if (cluster.freed !== null) head.append(build("span", "freed", `${cluster.freed} reclaimable`));
    head.append(build("span", "number", `#${cluster.number.toLocaleString("en")}`));
    const list = build("ul", "members");
    const show = (from, to) =>
      list.append(...cluster.members.slice(from, to).map((member, at) => memberItem(cluster, member, from + at)));
    show(0, MEMBERS_AT_FIRST);
    item.append(head, list);
    const numHidden = cluster.members.length - MEMBERS_AT_FIRST;
    if (numHidden > 0) {
      const more = build("button", "more", `Show ${numHidden.toLocaleString("en")} more`);
      more.type = "button";
      more.addEventListener("click", () => {
        show(MEMBERS_AT_FIRST);
        list.children[MEMBERS_AT_FIRST].querySelector("button").focus();
        more.remove();
      });
      item.append(more);
    }
    if (cluster.size > cluster.members.length) {
      const left = cluster.size - cluster.members.length;
      item.append(build("p", "more", `${plural(left, "more image is", "more images are")} in the clusters table only.`));
    }
    return item;
  };

  const numPages = () => {
    if (filtered !== null) return Math.max(1, Math.ceil(filtered.length / CLUSTERS_PER_PAGE));
    return contents === null ? 1 : Math.max(1, contents.pages);
  };

  const sayWhatIsShown = () => {
    if (contents === null) return;
    const shown = (filtered ?? { length: contents.clusters }).length;
    byId("no-clusters").hidden = shown > 0;
    byId("no-clusters").textContent = contents.clusters === 0 ? "No near-duplicates were found." : "No cluster fits this filter.";
    const some = contents.clusters < contents.allClusters;
    const of = filtered !== null || some ? ` of ${contents.allClusters.toLocaleString("en")}` : "";
    byId("found").textContent = shown === 0 ? "" : `${shown.toLocaleString("en")}${of} ${shown === 1 && of === "" ? "cluster" : "clusters"}`;
    if (some && filtered === null) byId("found").textContent += "; the others are in the clusters table";
    byId("filters").hidden = contents.clusters === 0;
    byId("pager").hidden = numPages() < 2;
    byId("page").max = numPages();
    byId("page").value = pageNumber + 1;
    byId("num-pages").textContent = numPages().toLocaleString("en");
    byId("previous").disabled = pageNumber === 0;
    byId("next").disabled = pageNumber + 1 >= numPages();
  };

  const showPage = () => {
    byId("cluster-list").replaceChildren(...clustersOfPage().map(clusterItem));
    sayWhatIsShown();
  };

  const turnTo = (page) => {
    pageNumber = Math.min(Math.max(page, 0), numPages() - 1);
    showPage();
    byId("clusters").scrollIntoView();
  };

  const filter = () => {
    words = searchable(byId("query").value).split(/\s+/u).filter(Boolean);
    const least = Number(byId("least").value);
    const isPlain = words.length === 0 && least <= 2;
    filtered = isPlain
      ? null
      : allClusters().filter(({ size, text }) => size >= least && (words.length === 0 || text.some(hasWords)));
    pageNumber = 0;
    showPage();
  };

  // The comparison of one image with its canonical image.
  let compared = null;

  const figure = (member, label) => {
    const facts = build("dl");
    const fact = (term, value) => facts.append(build("dt", "", term), build("dd", "", value));
    if (!member.canonical) fact("Score", member.score);
    fact("Pixels", member.pixels);
    fact("Size", member.bytes);
    fact("Image id", name(member.id));
    if (member.uri !== member.id) fact("Location", name(member.uri));
    if (member.link !== null) {
      const link = build("a", "", "Open the original");
      link.href = member.link;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      fact("File", link);
    }
    return build("figure", "", build("span", "label", label), build("div", "frame", picture(member)), facts);
  };

  const showComparison = () => {
    const { cluster, index } = compared;
    const member = cluster.members[index];
    const figures = [figure(cluster.members[0], "Canonical")];
    if (index > 0) figures.push(figure(member, "Near-duplicate"));
    byId("comparison-title").replaceChildren(name(member.name));
    byId("pair").replaceChildren(...figures);
    byId("place").textContent = `${index + 1} of ${cluster.members.length}`;
    byId("previous-member").disabled = index === 0;
    byId("next-member").disabled = index + 1 === cluster.members.length;
  };

  const compare = (cluster, index) => {
    compared = { cluster, index: index === 0 ? Math.min(1, cluster.members.length - 1) : index };
    showComparison();
    byId("comparison").showModal();
  };

  const moveComparison = (step) => {
    const index = compared.index + step;
    if (index < 0 || index >= compared.cluster.members.length) return;
    compared = { ...compared, index };
    showComparison();
  };

  const listRejects = (details) => {
    const body = details.querySelector("tbody");
    if (!details.open || body.childElementCount > 0) return;
    const row = ([id, detail]) => build("tr", "", build("td", "", name(id)), build("td", "", build("bdi", "", detail)));
    body.append(...dataOf(details.dataset.images).map(row));
  };

  const sections = [...document.querySelectorAll("main > section")];

  const showSection = () => {
    const wanted = sections.find((section) => `#${section.id}` === location.hash) ?? sections[0];
    for (const section of sections) section.hidden = section !== wanted;
    for (const link of document.querySelectorAll("nav.tabs a")) {
      if (link.hash === `#${wanted.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };

  byId("query").addEventListener("input", filter);
  byId("least").addEventListener("change", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => turnTo(pageNumber - 1));
  byId("next").addEventListener("click", () => turnTo(pageNumber + 1));
  byId("page").addEventListener("change", () => turnTo(Math.trunc(Number(byId("page").value)) - 1));
  byId("close").addEventListener("click", () => byId("comparison").close());
  byId("previous-member").addEventListener("click", () => moveComparison(-1));
  byId("next-member").addEventListener("click", () => moveComparison(1));
  byId("comparison").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") moveComparison(-1);
    if (event.key === "ArrowRight") moveComparison(1);
  });
  byId("comparison").addEventListener("click", (event) => {
    if (event.target === byId("comparison")) byId("comparison").close();
  });
  for (const details of document.querySelectorAll("details.reason")) {
    details.addEventListener("toggle", () => listRejects(details));
  }
  window.addEventListener("hashchange", showSection);
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key !== "/" || isTyping || byId("comparison").open || byId("clusters").hidden) return;
    event.preventDefault();
    byId("query").focus();
  });

  byId("query").disabled = true;
  byId("least").disabled = true;
  document.addEventListener("DOMContentLoaded", () => {
    contents = dataOf("contents");
    byId("query").disabled = false;
    byId("least").disabled = false;
    sayWhatIsShown();
  });

  showSection();
  showPage();
})();
