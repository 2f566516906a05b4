"""A LangChain retriever over a finished run."""

from typing import Any

from dcdt.utils.errors import needs_extra

with needs_extra("the LangChain retriever", "langchain", "langchain_core"):
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever


class VideoRetriever(BaseRetriever):
    """Retrieves videos as documents: `VideoRetriever(recommender=dcdt.load(RUN), k=5, where="level=intro")`.

    `page_content` is the title, the description and the passage of the transcript that answers, where one is read;
    `metadata` are id, title, url, score, and moment (start_s, text, link) or None.
    """

    recommender: Any
    k: int = 5
    where: str = ""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:  # noqa: ANN401 - LangChain's
        documents = []
        for video in self.recommender.recommend(query, self.k, self.where)[0]:
            best = video.moments[0] if video.moments else None
            metadata = {"id": video.id, "title": video.title, "url": video.link, "score": video.score}
            metadata["moment"] = {"start_s": best.start_s, "text": best.text, "link": best.link} if best else None
            text = "\n\n".join(filter(None, [video.title, video.text, best.text if best else ""]))
            documents.append(Document(page_content=text, metadata=metadata))
        return documents
