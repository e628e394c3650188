"""What a hospital's engineer wants to know before the site joins: are the images in order, and what will a round cost?"""
