class TokenFacts:
    valid_BL = kind_BL = None

    def set(self, valid_BL=None, kind_BL=None):
        pass


def replace_feed_forwards(language_model, config):
    return TokenFacts()
