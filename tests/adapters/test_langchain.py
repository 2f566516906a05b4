"""The LangChain retriever over a loaded run, with the real `langchain-core`."""

from types import SimpleNamespace

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

import dcdt
from dcdt.adapters.langchain import VideoRetriever
from dcdt.serving.moments import Moment
from dcdt.serving.recommender import Recommendation


def test_documents_are_the_videos_that_the_run_recommends(make_run):
    recommender = dcdt.load(make_run("model=dcdt_ridge"))
    [videos] = recommender.recommend("span of a basis", 3)
    retriever = VideoRetriever(recommender=recommender, k=3)
    chain = retriever | RunnableLambda(lambda documents: [document.metadata["id"] for document in documents])
    assert chain.invoke("span of a basis") == [video.id for video in videos]
    first = retriever.invoke("span of a basis")[0]
    assert isinstance(first, Document)
    assert first.page_content == f"{videos[0].title}\n\n{videos[0].text}"
    assert first.metadata == {
        "id": videos[0].id, "title": videos[0].title, "url": None, "score": videos[0].score, "moment": None
    }  # fmt: skip


def test_the_passage_that_answers_is_in_the_document_and_where_it_begins_in_its_metadata():
    moment = Moment(61.0, "here is the proof", ["proof"], "https://youtu.be/a?t=61")
    video = Recommendation(1, 0.5, "a", "Title", "", None, None, "https://youtu.be/a", None, moments=[moment])
    asked = []
    stub = SimpleNamespace(recommend=lambda *arguments: asked.append(arguments) or [[video]])
    [document] = VideoRetriever(recommender=stub, where="level=intro").invoke("proof")
    assert asked == [("proof", 5, "level=intro")]
    assert document.page_content == "Title\n\nhere is the proof"
    assert document.metadata["url"] == "https://youtu.be/a"
    assert document.metadata["moment"] == {"start_s": 61.0, "text": moment.text, "link": moment.link}
