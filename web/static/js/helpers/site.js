// The site whose page this chat is on; the server wrote it into the page as a data block. Its id is "" for the chat page itself.

export const site = JSON.parse(document.getElementById("site").textContent);
